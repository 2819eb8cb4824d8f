// Package i18n says in a person's language what Hanok says in English.
//
// English is what programs write, send and keep: events, reasons, errors and help.
// Where a person reads it, it is translated by the catalogue of their language: a
// list of English texts, with the verbs of package fmt where values stand, and what
// they are called there. A finished sentence, come from another host or read from
// a file of events, is recognised by its text around the values; values that are
// sentences themselves are translated in turn. What the catalogue does not know
// stays English: nothing is ever hidden for want of a translation.
//
// Names, states and words of the cluster file and of JSON are not translated: they
// are what one types.
package i18n

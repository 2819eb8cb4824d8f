// Package support makes support bundles: an archive of what others need to see
// in order to help. It is bounded in size and time, says of each part how it
// went, and has no secrets: every text passes [Redact], and no file with a
// key is a part.
package support

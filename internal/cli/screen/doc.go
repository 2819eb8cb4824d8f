// Package screen is what commands know of a person's terminal: whether there is
// one, how wide a text is on it, and the words of a cell.
package screen

// Package local is the agent's API for commands on the same host: the types of
// its answers and a client, HTTP with JSON over a unix socket that only root
// can open.
package local

// Package view translates between a host's account of its cluster
// (agent/local) and the messages of the API, in both directions: what the
// server shows is what the hosts say. Figures that change by themselves, such
// as how long a host has been silent, are left to the hosts.
package view

// Package oracle has tests only: they let the client of another implementation, xdg-go/scram, log in to package scram's
// server, with a channel that is bound and without. It is a module of its own because nothing else needs that.
package oracle

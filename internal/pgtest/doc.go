// Package pgtest is what tests use to run real PostgreSQL servers and to hold conversations with them, byte by byte:
// clusters that start, stop, crash and freeze on request, scripts of protocol messages with their transcripts, a
// generator of random scripts, a comparison of what two endpoints answer, and a scripted server for hostile tests.
//
// It is imported by tests only and runs on Unix systems only.
package pgtest

// Package oracle has tests only: they compare what package sqlscan reports of a text with what PostgreSQL's own parser
// makes of it. It is a module of its own because that parser is C, and takes a minute or two to compile.
//
// Texts come from the tests of sqlscan, from a generator whose seed is printed (ORACLE_SEED and ORACLE_TEXTS choose the
// seed and how many), and from the .sql files below the directory in ORACLE_SQL, if that is set.
package oracle

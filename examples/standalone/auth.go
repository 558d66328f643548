package main

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"flag"
	"fmt"
	"os"

	"github.com/pgmoor/pgmoor"
)

// This file has the flags that say who may come in.

func (o *options) authFlags(f *flag.FlagSet) {
	f.StringVar(&o.hba, "hba", "", "`FILE` in the format of pg_hba.conf that says who may log in and how, instead of -auth; read again at SIGHUP. Its methods are\n"+
		"scram-sha-256, md5, password, cert, token (see -token-auth), trust for named networks, and reject")
	f.StringVar(&o.ident, "ident", "", "`FILE` in the format of pg_ident.conf, with the maps that method cert of -hba names; read again at SIGHUP")
	f.StringVar(&o.clientCA, "tls-client-ca", "", "`FILE` with the certificates of those who issue clients' certificates, in PEM form; read again at SIGHUP. Clients that show\n"+
		"one must have it from them; -hba says who needs one")
	f.IntVar(&o.failures, "max-login-failures", 0, "refuse an address for a user after `N` wrong passwords or tokens, until six seconds have passed for each; 0: never")
	o.tokens.flags(f)
}

// resolveRules makes the Authenticator of -hba or -token-auth, and puts -max-login-failures in front of whatever there is.
func (o *options) resolveRules() error {
	switch {
	case o.tokens.verifier != nil && o.config.TLS == nil:
		return errors.New("tokens are taken over TLS only: set -tls-cert and -tls-key")
	case o.failures < 0:
		return errors.New("-max-login-failures must not be negative; 0 means never")
	case o.hba == "" && o.ident != "":
		return errors.New("-ident needs -hba")
	case o.hba != "":
		if err := o.readRules(); err != nil {
			return err
		}
	case o.tokens.verifier != nil:
		o.config.Authenticator = o.tokens.authenticator(o.passwords(), o.secrets.sources)
	case o.config.Authenticator == nil && o.failures > 0:
		o.config.Authenticator = o.passwords()
	}
	if o.failures > 0 && (o.auth != "trust" || o.hba != "") {
		o.config.Authenticator = pgmoor.Throttle(o.config.Authenticator, o.failures, 0)
	}
	return nil
}

// passwords is what -auth says; nil where there are none.
func (o *options) passwords() pgmoor.Authenticator {
	switch {
	case len(o.secrets.sources) == 0:
		return nil
	case o.config.Authenticator == nil:
		return pgmoor.SCRAM(o.secrets.sources)
	}
	return o.config.Authenticator
}

// methods returns the methods of -hba.
func (o *options) methods(maps map[string]pgmoor.UserMap) func(string, map[string]string) (pgmoor.Authenticator, error) {
	standard, passwords := pgmoor.StandardMethods(o.secrets.sources, maps), o.passwords()
	return func(method string, options map[string]string) (pgmoor.Authenticator, error) {
		if method == "token" {
			return o.tokens.method(options, passwords, o.secrets.sources)
		}
		return standard(method, options)
	}
}

func (o *options) readRules() error {
	maps := map[string]pgmoor.UserMap{}
	if o.ident != "" {
		f, err := os.Open(o.ident)
		if err != nil {
			return fmt.Errorf("-ident: %w", err)
		}
		defer f.Close()
		if maps, err = pgmoor.ParseIdent(f); err != nil {
			return fmt.Errorf("-ident %s: %w", o.ident, err)
		}
	}
	f, err := os.Open(o.hba)
	if err != nil {
		return fmt.Errorf("-hba: %w", err)
	}
	defer f.Close()
	rules, err := pgmoor.ParseHBA(f, o.methods(maps))
	if err == nil && len(rules) == 0 {
		err = errors.New("it has no rules: nobody could log in")
	}
	if err == nil {
		o.config.Authenticator, err = pgmoor.HBA(rules...)
	}
	if err != nil {
		return fmt.Errorf("-hba %s: %s", o.hba, plain(err))
	}
	return nil
}

func (o *options) resolveClientCA() error {
	if o.clientCA == "" {
		return nil
	}
	text, err := os.ReadFile(o.clientCA)
	if err != nil {
		return fmt.Errorf("-tls-client-ca: %w", err)
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(text) {
		return fmt.Errorf("-tls-client-ca: %s holds no certificate in PEM form", o.clientCA)
	}
	o.config.TLS.ClientCAs, o.config.TLS.ClientAuth = pool, tls.VerifyClientCertIfGiven
	return nil
}

// keepSources has options that were read again ask the sources of those before, with rules that were read again.
func (o *options) keepSources(before *options) error {
	o.secrets = before.secrets
	o.config.Secrets, o.config.Authenticator = before.config.Secrets, nil
	if err := o.resolveAuth(); err != nil {
		return err
	}
	return o.resolveRules()
}

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
		"scram-sha-256, md5, password, cert, trust for named networks, and reject")
	f.StringVar(&o.ident, "ident", "", "`FILE` in the format of pg_ident.conf, with the maps that method cert of -hba names; read again at SIGHUP")
	f.StringVar(&o.clientCA, "tls-client-ca", "", "`FILE` with the certificates of those who issue clients' certificates, in PEM form; read again at SIGHUP. Clients that show\n"+
		"one must have it from them; -hba says who needs one")
	f.IntVar(&o.failures, "max-login-failures", 0, "refuse an address for a user after `N` wrong passwords, until six seconds have passed for each; 0: never")
}

// resolveRules makes the Authenticator of -hba, and puts -max-login-failures in front of whatever there is.
func (o *options) resolveRules() error {
	switch {
	case o.failures < 0:
		return errors.New("-max-login-failures must not be negative; 0 means never")
	case o.hba == "" && o.ident != "":
		return errors.New("-ident needs -hba")
	case o.hba != "":
		if err := o.readRules(); err != nil {
			return err
		}
	case o.config.Authenticator == nil && o.failures > 0:
		o.config.Authenticator = pgmoor.SCRAM(o.secrets)
	}
	if o.failures > 0 && (o.auth != "trust" || o.hba != "") {
		o.config.Authenticator = pgmoor.Throttle(o.config.Authenticator, o.failures, 0)
	}
	return nil
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
	rules, err := pgmoor.ParseHBA(f, pgmoor.StandardMethods(o.secrets, maps))
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

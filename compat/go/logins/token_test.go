package logins_test

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"net/url"
	"strings"
	"time"

	"github.com/pgmoor/pgmoor"
)

const (
	tokenEndpoint = "db.example:5432"
	tokenRegion   = "eu-central-1"
)

func tokenKey(_ context.Context, id, _ string) (pgmoor.RDSKey, error) {
	if id != "AKIDEXAMPLE" {
		return pgmoor.RDSKey{}, pgmoor.ErrNoSecret
	}
	return pgmoor.RDSKey{SecretAccessKey: pgmoor.NewSecret("key")}, nil
}

// rdsToken makes what `aws rds generate-db-auth-token` makes, some minutes ago.
func rdsToken(user string, age time.Duration, key string) string {
	now := time.Now().UTC().Add(-age * time.Minute)
	day := now.Format("20060102")
	scope := day + "/" + tokenRegion + "/rds-db/aws4_request"
	query := "Action=connect&DBUser=" + user + "&X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Credential=" + url.QueryEscape("AKIDEXAMPLE/"+scope) +
		"&X-Amz-Date=" + now.Format("20060102T150405Z") + "&X-Amz-Expires=900&X-Amz-SignedHeaders=host"
	request := sha256.Sum256([]byte("GET\n/\n" + query + "\nhost:" + tokenEndpoint + "\n\nhost\n" + hex.EncodeToString(sha256.New().Sum(nil))))
	signed := []byte("AWS4" + key)
	for _, part := range append(strings.Split(scope, "/"), "AWS4-HMAC-SHA256\n"+now.Format("20060102T150405Z")+"\n"+scope+"\n"+hex.EncodeToString(request[:])) {
		h := hmac.New(sha256.New, signed)
		h.Write([]byte(part))
		signed = h.Sum(nil)
	}
	return tokenEndpoint + "/?" + query + "&X-Amz-Signature=" + hex.EncodeToString(signed)
}

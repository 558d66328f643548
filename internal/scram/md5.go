package scram

import (
	"crypto/md5" //nolint:gosec // what the protocol asks for
	"encoding/hex"
	"strings"
)

// md5Prefix marks an MD5 hash among stored passwords and in password messages.
const md5Prefix = "md5"

// MD5 returns the form in which PostgreSQL stores the password of a user under md5 authentication.
func MD5(user, password string) string { return md5Of(password + user) }

// MD5Response returns the password message with which a client that knows stored, the result of MD5, answers an
// AuthenticationMD5Password with the given salt. Compare it in constant time.
func MD5Response(stored string, salt [4]byte) string {
	return md5Of(strings.TrimPrefix(stored, md5Prefix) + string(salt[:]))
}

func md5Of(s string) string {
	sum := md5.Sum([]byte(s)) //nolint:gosec // what the protocol asks for
	return md5Prefix + hex.EncodeToString(sum[:])
}

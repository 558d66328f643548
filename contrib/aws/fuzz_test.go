package aws_test

import (
	"errors"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/pgmoor/pgmoor"
	pgmooraws "github.com/pgmoor/pgmoor/contrib/aws"
)

var errNoNetwork = errors.New("there is no network")

// inspector looks at requests, and sends none.
type inspector func(r *http.Request)

func (f inspector) RoundTrip(r *http.Request) (*http.Response, error) {
	f(r)
	return nil, errNoNetwork
}

// FuzzCallerIdentity has clients send any token: nothing goes to another host than the one that was named, nothing but GetCallerIdentity is asked for,
// and no error has the signature, by which everybody could ask.
func FuzzCallerIdentity(f *testing.F) {
	const signature = "5ca1ab1e"
	at := time.Now().UTC().Format("20060102T150405Z")
	good := "https://" + stsHost + "/?Action=GetCallerIdentity&Version=2011-06-15&X-Amz-Date=" + at + "&X-Amz-SignedHeaders=host%3Bx-k8s-aws-id&X-Amz-Signature=" + signature
	f.Add(good)
	f.Add(strings.Replace(good, stsHost, stsHost+"@evil.example", 1))
	f.Add(strings.Replace(good, "https", "http", 1))
	f.Add(strings.Replace(good, "/?", "/x/../?", 1))
	f.Add(good + "&action=AssumeRole")
	f.Add("")
	f.Fuzz(func(t *testing.T, url string) {
		v := &pgmooraws.CallerIdentity{
			Audience: "pgmoor.example", Hosts: []string{stsHost}, Users: func(pgmooraws.Identity, string) bool { return true },
			HTTP: &http.Client{Transport: inspector(func(r *http.Request) {
				require.Equal(t, "https", r.URL.Scheme)
				require.Equal(t, stsHost, r.URL.Host)
				require.Equal(t, stsHost, r.Host)
				require.Empty(t, strings.TrimSuffix(r.URL.Path, "/"))
				require.Nil(t, r.Body)
				require.Equal(t, []string{"pgmoor.example"}, r.Header.Values("x-k8s-aws-id"))
				for name, values := range r.URL.Query() {
					require.Len(t, values, 1)
					if strings.EqualFold(name, "Action") {
						require.Equal(t, "GetCallerIdentity", values[0])
					}
				}
			})},
		}
		err := v.VerifyToken(t.Context(), token(url), new(pgmoor.Client))
		require.Error(t, err)
		require.True(t, errors.Is(err, pgmoor.ErrInvalidToken) || errors.Is(err, errNoNetwork), err)
		if errors.Is(err, errNoNetwork) { // others may have it for a host
			require.NotContains(t, err.Error(), signature)
		}
	})
}

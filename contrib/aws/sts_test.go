package aws_test

import (
	"bytes"
	"context"
	"encoding/base64"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	v4 "github.com/aws/aws-sdk-go-v2/aws/signer/v4"
	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/stretchr/testify/require"

	"github.com/pgmoor/pgmoor"
	pgmooraws "github.com/pgmoor/pgmoor/contrib/aws"
)

const (
	stsHost = "sts.eu-central-1.amazonaws.com"
	nothing = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
)

// signing is how a token is made.
type signing struct {
	url     string
	headers map[string]string
	keys    aws.CredentialsProvider
	at      time.Time
	change  func(string) string // of the URL once it is signed
}

// presign makes a token as aws-iam-authenticator does.
func presign(t testing.TB, s signing) string {
	t.Helper()
	if s.url == "" {
		s.url = "https://" + stsHost + "/?Action=GetCallerIdentity&Version=2011-06-15&X-Amz-Expires=60"
	}
	if s.headers == nil {
		s.headers = map[string]string{"x-k8s-aws-id": "pgmoor.example"}
	}
	if s.keys == nil {
		s.keys = keys
	}
	r, err := http.NewRequest(http.MethodGet, s.url, nil)
	require.NoError(t, err)
	for name, value := range s.headers {
		r.Header.Set(name, value)
	}
	known, err := s.keys.Retrieve(t.Context())
	require.NoError(t, err)
	u, _, err := v4.NewSigner().PresignHTTP(t.Context(), known, r, nothing, "sts", "eu-central-1", orNow(s.at))
	require.NoError(t, err)
	if s.change != nil {
		u = s.change(u)
	}
	return token(u)
}

// token returns the token of a URL.
func token(url string) string {
	return "k8s-aws-v1." + base64.RawURLEncoding.EncodeToString([]byte(url))
}

func orNow(at time.Time) time.Time {
	if at.IsZero() {
		return time.Now()
	}
	return at
}

// sts is a fake of STS, which checks signatures by making them anew.
type sts struct {
	t      testing.TB
	mu     sync.Mutex
	arn    string
	status int // answered in the place of anything else
	body   string
	asked  int
}

func (s *sts) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.asked++
	w.Header().Set("Content-Type", "text/xml")
	switch {
	case s.status != 0:
		w.Header().Set("Location", "https://evil.example/")
		w.WriteHeader(s.status)
		_, _ = io.WriteString(w, s.body)
	case !s.isSigned(r):
		w.WriteHeader(http.StatusForbidden)
		_, _ = io.WriteString(w, `<ErrorResponse xmlns="https://sts.amazonaws.com/doc/2011-06-15/"><Error><Type>Sender</Type><Code>SignatureDoesNotMatch</Code>`+
			`<Message>The request signature we calculated does not match</Message></Error><RequestId>1</RequestId></ErrorResponse>`)
	default:
		_, _ = fmt.Fprintf(w, `<GetCallerIdentityResponse xmlns="https://sts.amazonaws.com/doc/2011-06-15/"><GetCallerIdentityResult><Arn>%s</Arn>`+
			`<UserId>AROAEXAMPLE:session</UserId><Account>123456789012</Account></GetCallerIdentityResult>`+
			`<ResponseMetadata><RequestId>1</RequestId></ResponseMetadata></GetCallerIdentityResponse>`, s.arn)
	}
}

func (s *sts) become(arn string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.arn = arn
}

// isSigned reports whether a request is signed with keys.
func (s *sts) isSigned(r *http.Request) bool {
	query := r.URL.Query()
	at, err := time.Parse("20060102T150405Z", query.Get("X-Amz-Date"))
	if err != nil || r.Host != stsHost {
		s.t.Errorf("this is no request to STS: %v %v", r.Host, r.URL)
	}
	again, err := http.NewRequest(http.MethodGet, "https://"+stsHost+"/?Action=GetCallerIdentity&Version=2011-06-15&X-Amz-Expires="+query.Get("X-Amz-Expires"), nil)
	if err != nil {
		return false
	}
	again.Header.Set("x-k8s-aws-id", r.Header.Get("x-k8s-aws-id"))
	known, _ := keys.Retrieve(context.Background())
	u, _, err := v4.NewSigner().PresignHTTP(context.Background(), known, again, nothing, "sts", "eu-central-1", at)
	return err == nil && strings.Contains(u, "X-Amz-Signature="+query.Get("X-Amz-Signature"))
}

// caller returns a verifier that asks a fake.
func caller(t testing.TB) (*pgmooraws.CallerIdentity, *sts) {
	t.Helper()
	fake := &sts{t: t, arn: "arn:aws:sts::123456789012:assumed-role/app/session"}
	server := httptest.NewTLSServer(fake)
	t.Cleanup(server.Close)
	transport := server.Client().Transport.(*http.Transport).Clone()
	transport.TLSClientConfig.ServerName = "example.com" // of the fake's certificate
	transport.DialContext = func(ctx context.Context, network, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, network, server.Listener.Addr().String())
	}
	t.Cleanup(transport.CloseIdleConnections)
	return &pgmooraws.CallerIdentity{
		Audience: "pgmoor.example", Hosts: []string{stsHost}, HTTP: &http.Client{Transport: transport},
		Users: func(id pgmooraws.Identity, user string) bool {
			return user == "app" && id.Account == "123456789012" && id.Role() == "arn:aws:iam::123456789012:role/app"
		},
	}, fake
}

// logBuffer collects a log from several goroutines.
type logBuffer struct {
	mu sync.Mutex
	bytes.Buffer
}

func (b *logBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.Buffer.Write(p)
}

func (b *logBuffer) text() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.String()
}

func TestCallersThatSTSKnows(t *testing.T) {
	v, fake := caller(t)
	log := new(logBuffer)
	address := serve(t, pgmoor.Config{Authenticator: &pgmoor.TokenAuth{Verifier: v}, Logger: slog.New(slog.NewTextHandler(log, nil))}, nil)
	require.Empty(t, logIn(t, address, "app", presign(t, signing{})), log)
	require.Empty(t, logIn(t, address, "app", presign(t, signing{at: time.Now().Add(-14 * time.Minute)})), log)
	require.Equal(t, "28P01", logIn(t, address, "other", presign(t, signing{})))
	require.Contains(t, log.text(), "who may not log in as")
	fake.become("arn:aws:sts::123456789012:assumed-role/other/app")
	require.Equal(t, "28P01", logIn(t, address, "app", presign(t, signing{})))
}

func TestTokensThatSTSIsNotAskedAbout(t *testing.T) {
	replace := func(old, by string) func(string) string {
		return func(u string) string { return strings.Replace(u, old, by, 1) }
	}
	const ask = "https://" + stsHost + "/?Action=GetCallerIdentity&Version=2011-06-15"
	for name, c := range map[string]struct {
		token signing
		why   string
	}{
		"another host":       {signing{url: strings.Replace(ask, stsHost, "evil.example", 1)}, `its host is "evil.example"`},
		"a host in front":    {signing{change: replace(stsHost, stsHost+"@evil.example")}, "not that of a request to STS"},
		"a host behind":      {signing{change: replace(stsHost, stsHost+".evil.example")}, "its host is"},
		"a port":             {signing{change: replace(stsHost, stsHost+":8443")}, "its host is"},
		"no TLS":             {signing{change: replace("https", "http")}, "not that of a request to STS"},
		"a path":             {signing{change: replace("com/?", "com/x?")}, "not that of a request to STS"},
		"a fragment":         {signing{change: func(u string) string { return u + "#x" }}, "not that of a request to STS"},
		"another action":     {signing{url: strings.Replace(ask, "GetCallerIdentity", "AssumeRole", 1)}, "its action is not"},
		"another version":    {signing{url: strings.Replace(ask, "2011", "2012", 1)}, "its action is not"},
		"two actions":        {signing{change: func(u string) string { return u + "&Action=AssumeRole" }}, "action is there twice"},
		"another case":       {signing{change: func(u string) string { return u + "&ACTION=AssumeRole" }}, "action is there twice"},
		"another parameter":  {signing{url: ask + "&RoleArn=x"}, "no such request has"},
		"no audience":        {signing{headers: map[string]string{}}, "headers that are signed"},
		"more headers":       {signing{headers: map[string]string{"x-k8s-aws-id": "pgmoor.example", "x-other": "y"}}, "headers that are signed"},
		"an expired one":     {signing{at: time.Now().Add(-16 * time.Minute)}, "it expired"},
		"from the future":    {signing{at: time.Now().Add(2 * time.Minute)}, "from the future"},
		"no date":            {signing{change: replace("X-Amz-Date=2", "X-Amz-Date=x2")}, "its date cannot be read"},
		"a bad parameter":    {signing{change: func(u string) string { return u + "&%zz" }}, "its parameters cannot be read"},
		"no signature":       {signing{change: replace("&X-Amz-Signature=", "&X-Amz-Signature=&x=")}, "no such request has"},
		"an empty signature": {signing{change: func(u string) string { return u[:len(u)-64] }}, "it is not signed"},
		"a long one":         {signing{change: func(u string) string { return u + strings.Repeat("x", 8<<10) }}, "longer than"},
		"no URL":             {signing{change: func(string) string { return "https://\x7f" }}, "it is no URL"},
	} {
		t.Run(name, func(t *testing.T) {
			v, fake := caller(t)
			err := v.VerifyToken(t.Context(), presign(t, c.token), new(pgmoor.Client))
			require.ErrorIs(t, err, pgmoor.ErrInvalidToken)
			require.ErrorContains(t, err, c.why)
			require.Zero(t, fake.asked)
		})
	}
	v, _ := caller(t)
	require.ErrorContains(t, v.VerifyToken(t.Context(), "k8s-aws-v1.***", new(pgmoor.Client)), "not in base64")
	require.False(t, v.IsToken("password"))
}

func TestTokensThatSTSRefuses(t *testing.T) {
	v, fake := caller(t)
	other := credentials.NewStaticCredentialsProvider("AKIDEXAMPLE", "another", "")
	for name, token := range map[string]string{
		"another key":      presign(t, signing{keys: other}),
		"another audience": presign(t, signing{headers: map[string]string{"x-k8s-aws-id": "other.example"}}),
	} {
		err := v.VerifyToken(t.Context(), token, new(pgmoor.Client))
		require.ErrorIs(t, err, pgmoor.ErrInvalidToken, name)
		require.ErrorContains(t, err, "SignatureDoesNotMatch", name)
	}
	require.Equal(t, 2, fake.asked)
}

func TestAnswersOfSTSThatAreNoIdentity(t *testing.T) {
	token := presign(t, signing{})
	u, err := base64.RawURLEncoding.DecodeString(strings.TrimPrefix(token, "k8s-aws-v1."))
	require.NoError(t, err)
	signed, err := url.Parse(string(u))
	require.NoError(t, err)
	for name, c := range map[string]struct {
		status int
		body   string
		want   string
	}{
		"a redirect": {302, "", "status 302"}, "busy": {503, "", "status 503"}, "JSON": {200, `{"Arn":"x"}`, "cannot be read"},
		"empty": {200, "<GetCallerIdentityResponse></GetCallerIdentityResponse>", "cannot be read"}, "another": {200, "<X><Arn>x</Arn></X>", "cannot be read"},
		"huge": {200, "<GetCallerIdentityResponse>" + strings.Repeat(" ", 1<<20), "cannot be read"},
	} {
		v, fake := caller(t)
		fake.status, fake.body = c.status, c.body
		err := v.VerifyToken(t.Context(), token, new(pgmoor.Client))
		require.ErrorContains(t, err, c.want, name)
		require.NotErrorIs(t, err, pgmoor.ErrInvalidToken, name)
	}
	v, _ := caller(t)
	v.HTTP = &http.Client{Transport: &http.Transport{DialContext: func(context.Context, string, string) (net.Conn, error) { return nil, net.ErrClosed }}}
	err = v.VerifyToken(t.Context(), token, new(pgmoor.Client))
	require.ErrorIs(t, err, net.ErrClosed)
	require.NotContains(t, err.Error(), signed.Query().Get("X-Amz-Signature"))
	require.ErrorContains(t, (&pgmooraws.CallerIdentity{}).VerifyToken(t.Context(), token, new(pgmoor.Client)), "needs an Audience")
}

func TestRolesOfIdentities(t *testing.T) {
	for arn, role := range map[string]string{
		"arn:aws:sts::1:assumed-role/app/session":        "arn:aws:iam::1:role/app",
		"arn:aws-us-gov:sts::1:assumed-role/app/a/b":     "arn:aws-us-gov:iam::1:role/app",
		"arn:aws:iam::1:user/app":                        "arn:aws:iam::1:user/app",
		"arn:aws:sts::1:federated-user/app":              "arn:aws:sts::1:federated-user/app",
		"arn:aws:sts::1:assumed-role/app":                "arn:aws:sts::1:assumed-role/app",
		"arn:aws:iam::1:user/x:sts::1:assumed-role/app/": "arn:aws:iam::1:user/x:sts::1:assumed-role/app/",
		"": "",
	} {
		require.Equal(t, role, pgmooraws.Identity{ARN: arn}.Role())
	}
}

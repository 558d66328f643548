package aws

import (
	"context"
	"encoding/base64"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/pgmoor/pgmoor"
)

// The form of the tokens is that of aws-iam-authenticator, so that there are tools for it.
const (
	stsPrefix   = "k8s-aws-v1."
	stsHeader   = "x-k8s-aws-id"
	maxSTSToken = 8 << 10
	maxSTSReply = 64 << 10
	stsLife     = 15 * time.Minute // from when it was signed; STS itself sees to that, too
	stsAhead    = time.Minute      // how much a client's clock may be fast
)

// Identity is who signed a token, in the words of STS.
type Identity struct {
	ARN     string // such as "arn:aws:sts::123456789012:assumed-role/app/session"
	Account string
	UserID  string
}

// Role returns the ARN of the role that was assumed, without the path that the role may have, as in
// "arn:aws:iam::123456789012:role/app"; the ARN itself where none was.
func (i Identity) Role() string {
	parts := strings.SplitN(i.ARN, ":", 6)
	if len(parts) != 6 || parts[2] != "sts" {
		return i.ARN
	}
	name, ok := strings.CutPrefix(parts[5], "assumed-role/")
	role, _, both := strings.Cut(name, "/")
	if !ok || !both {
		return i.ARN
	}
	return "arn:" + parts[1] + ":iam::" + parts[4] + ":role/" + role
}

// CallerIdentity is a pgmoor.TokenVerifier: a client presigns the request GetCallerIdentity of STS with the credentials that it has anyway, and the
// proxy sends it, by which STS tells who that is. The tokens are those of aws-iam-authenticator and of
//
//	aws eks get-token --cluster-name AUDIENCE --query status.token --output text
//
// which needs no cluster. The request is only sent to one of Hosts, and only if the header with the audience is signed, so that a token for
// another service is none for this one. A token may be used for 15 minutes. It must not be changed while a Proxy uses it.
type CallerIdentity struct {
	// Audience is the name of this service in the signed header x-k8s-aws-id. No other service should have it. Required.
	Audience string

	// Hosts are the endpoints of STS that requests may be sent to, such as "sts.eu-central-1.amazonaws.com". Required.
	Hosts []string

	// Users reports whether an identity may log in as a user. It is called from several goroutines at once. Required.
	Users func(id Identity, user string) bool

	// HTTP sends the requests. If nil, a client with the defaults of net/http. It follows no redirect, whatever it has in CheckRedirect.
	HTTP *http.Client
}

func invalid(format string, args ...any) error {
	return fmt.Errorf("%w: "+format, append([]any{pgmoor.ErrInvalidToken}, args...)...)
}

// IsToken reports whether password begins as tokens do.
func (v *CallerIdentity) IsToken(password string) bool { return strings.HasPrefix(password, stsPrefix) }

// VerifyToken asks STS whose token it is.
func (v *CallerIdentity) VerifyToken(ctx context.Context, token string, c *pgmoor.Client) error {
	if v.Audience == "" || len(v.Hosts) == 0 || v.Users == nil {
		return errors.New("pgmoor/aws: CallerIdentity needs an Audience, Hosts and Users")
	}
	u, err := v.read(token, time.Now())
	if err != nil {
		return err
	}
	id, err := v.ask(ctx, u)
	if err != nil {
		return err
	}
	if !v.Users(id, c.User()) {
		return invalid("it is of %q, who may not log in as %q", id.ARN, c.User())
	}
	return nil
}

// read returns the URL of a token, if it is one that may be sent.
func (v *CallerIdentity) read(token string, now time.Time) (*url.URL, error) {
	if len(token) > maxSTSToken {
		return nil, invalid("it is longer than %d bytes", maxSTSToken)
	}
	raw, err := base64.RawURLEncoding.Strict().DecodeString(strings.TrimRight(strings.TrimPrefix(token, stsPrefix), "="))
	if err != nil {
		return nil, invalid("it is not in base64")
	}
	u, err := url.Parse(string(raw))
	switch {
	case err != nil:
		return nil, invalid("it is no URL")
	case u.Scheme != "https" || u.User != nil || u.Fragment != "" || u.Path != "/" && u.Path != "" || u.Opaque != "":
		return nil, invalid("its URL is not that of a request to STS")
	case !slices.Contains(v.Hosts, u.Host):
		return nil, invalid("its host is %q", u.Host)
	}
	query, err := readQuery(u.RawQuery)
	if err != nil {
		return nil, err
	}
	return u, checkQuery(query, now)
}

// stsParameters are all that such a request may have.
var stsParameters = []string{
	"action", "version", "x-amz-algorithm", "x-amz-credential", "x-amz-date", "x-amz-expires", "x-amz-security-token", "x-amz-signature",
	"x-amz-signedheaders",
}

// readQuery returns the parameters, of which none may be there twice, in capital letters or not.
func readQuery(raw string) (map[string]string, error) {
	values, err := url.ParseQuery(raw)
	if err != nil {
		return nil, invalid("its parameters cannot be read")
	}
	query := make(map[string]string, len(values))
	for name, v := range values {
		name = strings.ToLower(name)
		_, double := query[name]
		switch {
		case !slices.Contains(stsParameters, name):
			return nil, invalid("it has a parameter that no such request has")
		case double || len(v) != 1:
			return nil, invalid("%s is there twice", name)
		}
		query[name] = v[0]
	}
	return query, nil
}

func checkQuery(query map[string]string, now time.Time) error {
	headers := strings.Split(strings.ToLower(query["x-amz-signedheaders"]), ";")
	slices.Sort(headers)
	date, err := time.Parse("20060102T150405Z", query["x-amz-date"])
	switch age := now.Sub(date); {
	case query["action"] != "GetCallerIdentity" || query["version"] != "2011-06-15":
		return invalid("its action is not GetCallerIdentity")
	case !slices.Equal(headers, []string{"host", stsHeader}):
		return invalid("the headers that are signed are not host and %s", stsHeader)
	case query["x-amz-signature"] == "":
		return invalid("it is not signed")
	case err != nil:
		return invalid("its date cannot be read")
	case age >= stsLife:
		return invalid("it expired %v ago", (age - stsLife).Truncate(time.Second))
	case age < -stsAhead:
		return invalid("it is from the future, by %v: see to the clocks", (-age).Truncate(time.Second))
	}
	return nil
}

// ask sends the request. Its errors do not have the URL, by which everybody could do the same.
func (v *CallerIdentity) ask(ctx context.Context, u *url.URL) (Identity, error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, u.String(), nil)
	if err != nil {
		return Identity{}, invalid("its URL cannot be asked for")
	}
	request.Header.Set(stsHeader, v.Audience)
	response, err := v.client().Do(request)
	var failed *url.Error
	switch {
	case errors.As(err, &failed):
		return Identity{}, fmt.Errorf("pgmoor/aws: %s cannot be asked: %w", u.Host, failed.Err)
	case err != nil:
		return Identity{}, err
	}
	defer response.Body.Close()
	body, err := io.ReadAll(io.LimitReader(response.Body, maxSTSReply))
	if err != nil {
		return Identity{}, fmt.Errorf("pgmoor/aws: the answer of %s: %w", u.Host, err)
	}
	return readIdentity(response.StatusCode, body)
}

// client returns one that follows no redirects.
func (v *CallerIdentity) client() *http.Client {
	c := http.Client{}
	if v.HTTP != nil {
		c = *v.HTTP
	}
	c.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	return &c
}

func readIdentity(status int, body []byte) (Identity, error) {
	switch status {
	case http.StatusOK:
	case http.StatusBadRequest, http.StatusForbidden:
		return Identity{}, invalid("STS refuses it (%s)", problem(body))
	default:
		return Identity{}, fmt.Errorf("pgmoor/aws: STS answers with status %d", status)
	}
	var answer struct {
		XMLName xml.Name `xml:"GetCallerIdentityResponse"`
		ARN     string   `xml:"GetCallerIdentityResult>Arn"`
		Account string   `xml:"GetCallerIdentityResult>Account"`
		UserID  string   `xml:"GetCallerIdentityResult>UserId"`
	}
	if err := xml.Unmarshal(body, &answer); err != nil || answer.ARN == "" || answer.Account == "" {
		return Identity{}, errors.New("pgmoor/aws: the answer of STS cannot be read")
	}
	return Identity{ARN: answer.ARN, Account: answer.Account, UserID: answer.UserID}, nil
}

// problem returns the code of an error of STS, whose text might have the request in it.
func problem(body []byte) string {
	var answer struct {
		Code string `xml:"Error>Code"`
	}
	if err := xml.Unmarshal(body, &answer); err != nil || answer.Code == "" || len(answer.Code) > 100 {
		return "without a code"
	}
	return answer.Code
}

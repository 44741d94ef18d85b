package main

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/sealift/sealift/attest"
	"github.com/sealift/sealift/attest/client/operator"
	"github.com/sealift/sealift/cmd/sealift/internal/oidc"
)

// operatorOptions say which service to talk to, and as whom.
type operatorOptions struct {
	server, identity    string
	serverCA, tokenFile string
	in                  func() io.Reader // for --token-file -
}

func (o *operatorOptions) addFlags(cmd *cobra.Command) {
	f := cmd.Flags()
	f.StringVar(&o.server, "server", os.Getenv("SEALIFT_SERVER"), "https `URL` of the operator API (or SEALIFT_SERVER)")
	f.StringVar(&o.identity, "identity", os.Getenv("SEALIFT_IDENTITY"), "`directory` of 'sealift keys issue operator' (or SEALIFT_IDENTITY)")
	f.StringVar(&o.tokenFile, "token-file", os.Getenv("SEALIFT_TOKEN_FILE"), "`file` with a token of the service's issuer, in place of a certificate; - is standard input (or SEALIFT_TOKEN_FILE, or the token itself in SEALIFT_TOKEN)")
	f.StringVar(&o.serverCA, "server-ca", os.Getenv("SEALIFT_SERVER_CA"), "PEM `file` with the CA of the service; that of --identity if left out (or SEALIFT_SERVER_CA)")
	o.in = cmd.InOrStdin
}

// identified reports whether it was said who asks.
func (o *operatorOptions) identified() bool {
	return o.identity != "" || o.tokenFile != "" || os.Getenv("SEALIFT_TOKEN") != ""
}

// do calls the service, and adds to an error what mends it.
func (o *operatorOptions) do(call func(*operator.Client) error) error {
	client, err := o.client()
	if err != nil {
		return err
	}
	defer client.Close()
	err = call(client)
	var answer *operator.Error
	if errors.As(err, &answer) {
		switch answer.Status {
		case http.StatusBadRequest:
			err = usage{err}
		case http.StatusForbidden, http.StatusUnauthorized:
			err = refused{err}
		}
		if answer.Answer.Hint != "" {
			err = withHint(err, "%s", answer.Answer.Hint)
		}
		return err
	}
	if errors.As(err, new(*url.Error)) {
		return o.unreachable(fmt.Errorf("ask the service: %w", err))
	}
	return err
}

// unreachable says why no answer came.
func (o *operatorOptions) unreachable(err error) error {
	var remote *net.OpError
	switch {
	case errors.Is(err, syscall.ECONNREFUSED):
		return withHint(err, "is `sealift serve` running, with %s as its operator API?", o.server)
	case errors.As(err, new(*tls.CertificateVerificationError)):
		return withHint(refused{err}, "the service at %s is not of the CA in %s", o.server, o.caFile())
	case errors.As(err, &remote) && remote.Op == "remote error": // a TLS alert
		return withHint(refused{err}, "the service does not take this identity: sealift keys issue operator NAME --role ROLE --keys KEYS --out DIR makes one that it does")
	}
	return err
}

// caFile is where the CA of the service is.
func (o *operatorOptions) caFile() string {
	if o.serverCA != "" {
		return o.serverCA
	}
	return filepath.Join(o.identity, identityCA)
}

// token returns the token to show, or nothing if the operator has a
// certificate. One that is given wins over an identity.
func (o *operatorOptions) token() (attest.Secret, error) {
	var b []byte
	var err error
	switch {
	case o.tokenFile == "-":
		b, err = io.ReadAll(io.LimitReader(o.in(), oidc.MaxToken+2))
	case o.tokenFile != "":
		info, serr := os.Stat(o.tokenFile)
		if serr == nil && info.Mode().Perm()&0o077 != 0 {
			return nil, withHint(fmt.Errorf("read token: mode of %s is %04o: others can read it", o.tokenFile, info.Mode().Perm()), "chmod 600 %s", o.tokenFile)
		}
		b, err = readFile(o.tokenFile, oidc.MaxToken+2)
	default:
		b = []byte(os.Getenv("SEALIFT_TOKEN"))
	}
	if err != nil {
		return nil, fmt.Errorf("read token: %w", err)
	}
	b = bytes.TrimSpace(b)
	if len(b) == 0 && o.tokenFile != "" {
		return nil, usage{fmt.Errorf("read token: %s is empty", o.tokenFile)}
	}
	// It goes into a header. Its text is not shown.
	if len(b) > oidc.MaxToken || bytes.ContainsFunc(b, func(r rune) bool { return r <= ' ' || r > '~' }) {
		return nil, usage{fmt.Errorf("read token: %d bytes that are too many, or no token: want up to %d printable characters in one line", len(b), oidc.MaxToken)}
	}
	return b, nil
}

// client connects nothing yet; its calls do.
func (o *operatorOptions) client() (*operator.Client, error) {
	token, err := o.token()
	if err != nil {
		return nil, err
	}
	if o.server != "" && o.identity == "" && len(token) == 0 {
		return nil, withHint(usage{fmt.Errorf("the service at %s has to know who asks", o.server)}, "give --identity, or set SEALIFT_IDENTITY; with a token: --token-file and --server-ca")
	}
	if o.server == "" {
		return nil, withHint(usage{errors.New("no service to talk to")}, "give --server and --identity, or set SEALIFT_SERVER and SEALIFT_IDENTITY; with a token: --token-file and --server-ca")
	}
	config := operator.Config{URL: o.server}
	if len(token) > 0 {
		config.Token = token
		if o.serverCA == "" && o.identity == "" {
			return nil, withHint(usage{errors.New("the CA of the service is not known")}, "give --server-ca with the service's service-ca.crt")
		}
		if config.CA, err = readPool(o.caFile()); err != nil {
			return nil, err
		}
	} else {
		if config.CA, config.Certificate, err = readIdentity(o.identity); err != nil {
			return nil, err
		}
		if o.serverCA != "" {
			if config.CA, err = readPool(o.serverCA); err != nil {
				return nil, err
			}
		}
	}
	client, err := operator.New(config)
	if err != nil {
		return nil, usage{err}
	}
	return client, nil
}

// readIdentity reads what `sealift keys issue operator` made.
func readIdentity(dir string) (*x509.CertPool, tls.Certificate, error) {
	ca, err := readFile(filepath.Join(dir, identityCA), maxSmall)
	if err != nil {
		return nil, tls.Certificate{}, withHint(fmt.Errorf("read identity: %w", err), "sealift keys issue operator NAME --role ROLE --out %s", dir)
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(ca) {
		return nil, tls.Certificate{}, fmt.Errorf("read identity: %s holds no certificate", filepath.Join(dir, identityCA))
	}
	crt, err := tls.LoadX509KeyPair(filepath.Join(dir, identityCert), filepath.Join(dir, identityKey))
	if err != nil {
		return nil, tls.Certificate{}, fmt.Errorf("read identity: %w", err)
	}
	return pool, crt, nil
}

// parseMachine reads a machine id from the command line.
func parseMachine(s string) (attest.MachineID, error) {
	id, err := attest.ParseMachineID(s)
	if err != nil {
		return id, withHint(usage{err}, "sealift machine list shows the ids")
	}
	return id, nil
}

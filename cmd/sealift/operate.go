package main

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/sealift/sealift/attest"
	"github.com/sealift/sealift/attest/client/operator"
)

// operatorOptions say which service to talk to, and as whom.
type operatorOptions struct {
	server, identity string
}

func (o *operatorOptions) addFlags(cmd *cobra.Command) {
	f := cmd.Flags()
	f.StringVar(&o.server, "server", os.Getenv("SEALIFT_SERVER"), "https `URL` of the operator API (or SEALIFT_SERVER)")
	f.StringVar(&o.identity, "identity", os.Getenv("SEALIFT_IDENTITY"), "`directory` of 'sealift keys issue operator' (or SEALIFT_IDENTITY)")
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
		case http.StatusForbidden:
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
		return withHint(refused{err}, "the service at %s is not of the CA in %s", o.server, filepath.Join(o.identity, identityCA))
	case errors.As(err, &remote) && remote.Op == "remote error": // a TLS alert
		return withHint(refused{err}, "the service does not take this identity: sealift keys issue operator NAME --role ROLE --keys KEYS --out DIR makes one that it does")
	}
	return err
}

// client connects nothing yet; its calls do.
func (o *operatorOptions) client() (*operator.Client, error) {
	if o.server == "" || o.identity == "" {
		return nil, withHint(usage{errors.New("no service to talk to")}, "give --server and --identity, or set SEALIFT_SERVER and SEALIFT_IDENTITY")
	}
	pool, crt, err := readIdentity(o.identity)
	if err != nil {
		return nil, err
	}
	client, err := operator.New(operator.Config{URL: o.server, CA: pool, Certificate: crt})
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

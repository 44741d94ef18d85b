package main

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"os"
	"path/filepath"

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
	f.StringVar(&o.server, "server", os.Getenv("SEALIFT_SERVER"), "https URL of the operator API (or SEALIFT_SERVER)")
	f.StringVar(&o.identity, "identity", os.Getenv("SEALIFT_IDENTITY"), "directory of `sealift keys issue operator` (or SEALIFT_IDENTITY)")
}

// client connects nothing yet; its calls do.
func (o *operatorOptions) client() (*operator.Client, error) {
	if o.server == "" || o.identity == "" {
		return nil, withHint(usage{errors.New("no service to talk to")}, "give --server and --identity, or set SEALIFT_SERVER and SEALIFT_IDENTITY")
	}
	ca, err := os.ReadFile(filepath.Join(o.identity, identityCA))
	if err != nil {
		return nil, withHint(fmt.Errorf("read identity: %w", err), "sealift keys issue operator NAME --out %s", o.identity)
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(ca) {
		return nil, fmt.Errorf("read identity: %s holds no certificate", filepath.Join(o.identity, identityCA))
	}
	crt, err := tls.LoadX509KeyPair(filepath.Join(o.identity, identityCert), filepath.Join(o.identity, identityKey))
	if err != nil {
		return nil, fmt.Errorf("read identity: %w", err)
	}
	return operator.New(operator.Config{URL: o.server, CA: pool, Certificate: crt})
}

// parseMachine reads a machine id from the command line.
func parseMachine(s string) (attest.MachineID, error) {
	id, err := attest.ParseMachineID(s)
	if err != nil {
		return id, withHint(usage{err}, "sealift machine list shows the ids")
	}
	return id, nil
}

package main

import (
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"

	"github.com/sealift/sealift/cmd/sealift/internal/keyring"
)

func newKeysCommand(e *env) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "keys",
		Short: "Make the keys of a fleet and issue certificates with them",
		Args:  cobra.NoArgs,
		RunE:  func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(newKeysInitCommand(e), newKeysIssueCommand(e))
	return cmd
}

func newKeysInitCommand(e *env) *cobra.Command {
	return &cobra.Command{
		Use:   "init DIR",
		Short: "Make a new key directory",
		Long: `Makes DIR with the keys of one fleet: the Secure Boot PK, KEK and db with their
signed enrolment payloads, the keys that sign images, PCR 11 policies and
releases, the service's CA, and the key that wraps disk keys at rest. Private
files have mode 0600. A directory that exists is never touched.

Whoever holds DIR owns the fleet: keep it on the build machine, and give
` + "`sealift serve`" + ` only what it needs (service-ca, release and disk-kek).

Example:
  sealift keys init keys` + exitStatus,
		Args: cobra.ExactArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			err := keyring.Init(args[0], e.now(), rand.Reader)
			if errors.Is(err, os.ErrExist) {
				return withHint(err, "choose another directory; keys are never overwritten")
			}
			if err != nil {
				return err
			}
			fmt.Fprintf(e.out, "%s\n", args[0])
			return nil
		},
	}
}

// Files of an operator's identity directory.
const (
	identityCA   = "ca.crt"
	identityCert = "operator.crt"
	identityKey  = "operator.key"
)

func newKeysIssueCommand(e *env) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "issue",
		Short: "Issue certificates from the service's CA",
		Args:  cobra.NoArgs,
		RunE:  func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	var keys, out string
	operator := &cobra.Command{
		Use:   "operator NAME",
		Short: "Make the identity with which a person or a program operates the service",
		Long: `Makes the directory --out with a client certificate for NAME, its key and the
service's CA certificate. The commands that talk to the service take it as
--identity.

Example:
  sealift keys issue operator ana --keys keys --out ~/.config/sealift` + exitStatus,
		Args: cobra.ExactArgs(1),
		RunE: func(_ *cobra.Command, args []string) error { return issueOperator(e, keys, args[0], out) },
	}
	operator.Flags().StringVar(&keys, "keys", "keys", "key directory")
	operator.Flags().StringVar(&out, "out", "", "directory to make (required)")
	operator.MarkFlagRequired("out")
	cmd.AddCommand(operator)
	return cmd
}

func issueOperator(e *env, keys, name, out string) error {
	ring, err := openKeys(keys)
	if err != nil {
		return err
	}
	issuer, err := ring.Issuer(e.now(), rand.Reader)
	if err != nil {
		return err
	}
	ca, err := ring.CertificatePEM(keyring.FileServiceCA)
	if err != nil {
		return err
	}
	crt, err := issuer.IssueOperator(name, []string{"operator"})
	if err != nil {
		return err
	}
	key, err := x509.MarshalPKCS8PrivateKey(crt.PrivateKey)
	if err != nil {
		return fmt.Errorf("encode the operator's key: %w", err)
	}
	if err := os.Mkdir(out, 0o700); err != nil {
		return withHint(fmt.Errorf("make the identity directory: %w", err), "choose another directory; identities are never overwritten")
	}
	var chain []byte
	for _, der := range crt.Certificate {
		chain = append(chain, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})...)
	}
	for _, f := range []struct {
		name    string
		content []byte
		mode    os.FileMode
	}{
		{identityCA, ca, 0o644},
		{identityCert, chain, 0o644},
		{identityKey, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: key}), 0o600},
	} {
		if err := os.WriteFile(filepath.Join(out, f.name), f.content, f.mode); err != nil {
			return fmt.Errorf("write the identity: %w", err)
		}
	}
	fmt.Fprintf(e.out, "%s\n", out)
	return nil
}

// openKeys opens a key directory and says how to get one.
func openKeys(dir string) (*keyring.Keyring, error) {
	ring, err := keyring.Open(dir)
	if errors.Is(err, os.ErrNotExist) {
		return nil, withHint(err, "sealift keys init %s", dir)
	}
	return ring, err
}

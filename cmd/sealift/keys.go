package main

import (
	"context"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/sealift/sealift/attest/api"
	"github.com/sealift/sealift/cmd/sealift/internal/keyring"
)

func newKeysCommand(e *env) *cobra.Command {
	return newGroup("keys", "Make the keys of a fleet and issue certificates with them", `
One directory holds all keys of a fleet.`, `
  sealift keys init keys`,
		newKeysInitCommand(e), newKEKCommand(e),
		newGroup("issue", "Issue certificates from the service's CA", `
Certificates end by themselves; issue new ones in time.`, `
  sealift keys issue operator ana --role operator --out ana`,
			newKeysIssueOperatorCommand(e)),
		newGroup("revoke", "Withdraw certificates of the service's CA", `
A certificate that was lost is withdrawn before it ends by itself.`, `
  sealift keys revoke operator ana`,
			newKeysRevokeOperatorCommand(e)))
}

func newKeysInitCommand(e *env) *cobra.Command {
	var o keyOptions
	cmd := &cobra.Command{
		Use:   "init DIR",
		Short: "Make a new key directory",
		Long: `Makes DIR with the keys of one fleet: the Secure Boot PK, KEK and db with their
signed enrolment payloads, the keys that sign images, PCR 11 policies and
releases, the service's CA, and the key that wraps disk keys at rest. Private
files have mode 0600. A directory that exists is never touched.

With --image-key, DIR gets no image key of its own but the reference and the
public half of one that is kept in a token or a key management service. It must
be ECDSA P-256. 'sealift image build' then signs with it.

Whoever holds DIR owns the fleet: keep it on the build machine, and give
'sealift serve' only what it needs: service-ca, release and image.pub, and
disk-kek, unless its configuration names another key-encryption key.

Example:
  sealift keys init keys
  sealift keys init keys --image-key hashivault://fleet-image` + exitStatus,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			err := initKeys(cmd.Context(), e, args[0], o)
			if errors.Is(err, os.ErrExist) {
				return withHint(err, "choose another directory; keys are never overwritten")
			}
			if err != nil {
				return err
			}
			return e.print(struct {
				Dir string `json:"dir"`
			}{args[0]}, "%s", args[0])
		},
	}
	o.addFlags(cmd.Flags(), "image-key", "image key that is kept elsewhere")
	return cmd
}

// initKeys makes the key directory, with a reference if the image key is kept
// elsewhere.
func initKeys(ctx context.Context, e *env, dir string, o keyOptions) (err error) {
	if o.ref == "" {
		return keyring.Init(dir, e.now(), rand.Reader)
	}
	s, err := o.load(ctx, e, o.ref)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.Close()) }()
	pub, err := s.PublicPEM()
	if err != nil {
		return err
	}
	ref := o.ref
	if !strings.Contains(ref, ":") {
		// A file is to be found from anywhere.
		if ref, err = filepath.Abs(ref); err != nil {
			return err
		}
	}
	return keyring.InitExternal(dir, e.now(), rand.Reader, keyring.External{Ref: ref, Public: pub})
}

// Files of an operator's identity directory.
const (
	identityCA   = "ca.crt"
	identityCert = "operator.crt"
	identityKey  = "operator.key"
)

func newKeysIssueOperatorCommand(e *env) *cobra.Command {
	var keys, out string
	var roles []string
	cmd := &cobra.Command{
		Use:   "operator NAME",
		Short: "Make the identity with which a person or a program operates the service",
		Long: `Makes the directory --out with a client certificate for NAME, its key and the
service's CA certificate. The commands that talk to the service take it as
--identity. The certificate is valid for 90 days and names the roles. It is noted
in the key directory, so that 'sealift keys revoke operator' finds it by NAME.

  viewer    reads machines and campaigns, as every role does
  operator  enrols, revokes, runs campaigns: all that needs one person
  approver  approves and reinstates machines, and what another asked for
  auditor   reads the audit log and the evidence

Example:
  sealift keys issue operator ana --role operator --role auditor --out ana` + exitStatus,
		Args: cobra.ExactArgs(1),
		RunE: func(_ *cobra.Command, args []string) error { return issueOperator(e, keys, args[0], roles, out) },
	}
	cmd.Flags().StringVar(&keys, "keys", "keys", "key `directory`")
	cmd.Flags().StringVar(&out, "out", "", "`directory` to make (required)")
	cmd.Flags().StringSliceVar(&roles, "role", nil, "`role` of the operator: viewer, operator, approver, auditor (required, repeatable)")
	required(cmd, "out", "role")
	return cmd
}

func issueOperator(e *env, keys, name string, roles []string, out string) (err error) {
	if _, err := os.Lstat(out); err == nil {
		return withHint(fmt.Errorf("make identity %s: %w", out, os.ErrExist), "choose another directory; identities are never overwritten")
	}
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
	var granted []api.Role
	for _, r := range roles {
		granted = append(granted, api.Role(r))
	}
	crt, err := issuer.IssueOperator(name, granted)
	if err != nil {
		return usage{err}
	}
	if err := ring.Register(crt.Leaf); err != nil {
		return err
	}
	key, err := x509.MarshalPKCS8PrivateKey(crt.PrivateKey)
	if err != nil {
		return fmt.Errorf("encode the operator's key: %w", err)
	}
	// MkdirTemp gives mode 0700. The rename at the end makes all of it or nothing.
	temp, err := os.MkdirTemp(filepath.Dir(out), "."+filepath.Base(out)+"-")
	if err != nil {
		return fmt.Errorf("make identity %s: %w", out, err)
	}
	defer func() { err = errors.Join(err, os.RemoveAll(temp)) }()
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
		// Durable before the rename: after a power cut an empty key would have its name.
		if err := replaceFile(filepath.Join(temp, f.name), f.content, f.mode); err != nil {
			return fmt.Errorf("make identity %s: %w", out, err)
		}
	}
	if err := os.Rename(temp, out); err != nil {
		return fmt.Errorf("make identity %s: %w", out, err)
	}
	return e.print(struct {
		Dir     string    `json:"dir"`
		Serial  string    `json:"serial"`
		Expires time.Time `json:"expires"`
	}{out, crt.Leaf.SerialNumber.Text(16), crt.Leaf.NotAfter}, "%s (until %s)", out, crt.Leaf.NotAfter.Format(time.DateOnly))
}

// openKeys opens a key directory and says how to get one.
func openKeys(dir string) (*keyring.Keyring, error) {
	ring, err := keyring.Open(dir)
	if errors.Is(err, os.ErrNotExist) {
		return nil, withHint(err, "sealift keys init %s", dir)
	}
	return ring, err
}

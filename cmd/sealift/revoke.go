package main

import (
	"crypto/rand"
	"errors"
	"fmt"
	"math/big"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"github.com/sealift/sealift/cmd/sealift/internal/keyring"
)

func newKeysRevokeOperatorCommand(e *env) *cobra.Command {
	var keys, out string
	var serials []string
	cmd := &cobra.Command{
		Use:   "operator [NAME]",
		Short: "Withdraw the certificates of an operator",
		Long: `Puts all certificates that were issued to NAME from the key directory, and those
with the given serial numbers, on the list of revoked certificates: a CRL that
the service's CA signs, ` + keyring.FileRevoked + ` in the key directory. 'sealift serve' reads it
there, or where operator.revoked in its configuration says, and obeys a new list
from the next request on, without a restart. Copy it to the service if that has
a key directory of its own.

A certificate that was revoked stays so. If its owner is to have access again,
issue another one.

Example:
  sealift keys revoke operator ana
  sealift keys revoke operator --serial 5f3c09d1e2 --out /run/sealift/operators.crl` + exitStatus,
		Args: cobra.MaximumNArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			return revokeOperator(e, keys, strings.Join(args, ""), serials, out)
		},
	}
	cmd.Flags().StringVar(&keys, "keys", "keys", "key `directory`")
	cmd.Flags().StringSliceVar(&serials, "serial", nil, "serial `number` in hex (repeatable)")
	cmd.Flags().StringVar(&out, "out", "", "write the list also to this `file`")
	return cmd
}

func revokeOperator(e *env, keys, name string, serials []string, out string) error {
	if name == "" && len(serials) == 0 {
		return usage{errors.New("nothing to revoke: give NAME or --serial")}
	}
	ring, err := openKeys(keys)
	if err != nil {
		return err
	}
	issuer, err := ring.Issuer(e.now(), rand.Reader)
	if err != nil {
		return err
	}
	var revoked []*big.Int
	for _, s := range serials {
		n, ok := new(big.Int).SetString(strings.ReplaceAll(s, ":", ""), 16)
		if !ok || n.Sign() <= 0 || n.BitLen() > 160 { // RFC 5280 4.1.2.2
			return usage{fmt.Errorf("serial number %q is not 1 to 40 hex digits", s)}
		}
		revoked = append(revoked, n)
	}
	if name != "" {
		issued, err := ring.IssuedTo(name, e.now())
		if err != nil {
			return err
		}
		if len(issued) == 0 {
			return withHint(fmt.Errorf("no certificate of %s that is still valid was issued from %s", name, keys),
				"if it was issued elsewhere: --serial, which 'openssl x509 -noout -serial' shows")
		}
		for _, one := range issued {
			n, ok := new(big.Int).SetString(one.Serial, 16)
			if !ok {
				return fmt.Errorf("%s: %q is no serial number", filepath.Join(keys, keyring.FileOperators), one.Serial)
			}
			revoked = append(revoked, n)
		}
	}
	list, err := issuer.Revoke(ring, revoked)
	if err != nil {
		return err
	}
	file := filepath.Join(keys, keyring.FileRevoked)
	if err := replaceFile(file, list, 0o644); err != nil {
		return err
	}
	if out != "" {
		if err := replaceFile(out, list, 0o644); err != nil {
			return err
		}
	}
	var texts []string
	for _, n := range revoked {
		texts = append(texts, n.Text(16))
	}
	return e.print(struct {
		File    string   `json:"file"`
		Revoked []string `json:"revoked"`
	}{file, texts}, "%s: revoked %s", file, strings.Join(texts, ", "))
}

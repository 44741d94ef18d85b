package image

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"reflect"

	"github.com/sealift/sealift/attest/policy"
)

// Names of the files that hold the policy of a profile, beside its image. An
// image whose profile has no policy has none of them. The policy is a file of its
// own and not a field of the manifest: it changes when no byte of the image does,
// and then only the policy is signed anew.
const (
	FilePolicy    = "policy.yaml"
	FilePolicyDBX = "policy.dbx" // the file that its secureBoot.dbx.superset names
)

// policyFiles are the files of a policy with its bundle.
func policyFiles() []string { return []string{FilePolicy, BundleOf(FilePolicy), FilePolicyDBX} }

// policyText returns the profile's policy as a file, or nil if it has none. The
// file beside it is named as it is in an output directory.
func (in *BuildInput) policyText() ([]byte, error) {
	p := in.Profile.Policy
	if reflect.ValueOf(p).IsZero() {
		return nil, nil
	}
	if p.SecureBoot.DBX.Superset.File != "" {
		p.SecureBoot.DBX.Superset.File = FilePolicyDBX
	}
	text, err := p.Encode()
	if err == nil {
		_, err = policy.Parse(FilePolicy, text, func(string) ([]byte, error) { return in.PolicyDBX, nil })
	}
	if err != nil {
		return nil, fmt.Errorf("policy of profile %s: %w", in.Profile.Name, err)
	}
	return text, nil
}

// policy writes the policy of the profile, signed as the manifest is.
func (b *builder) policy(ctx context.Context) error {
	text, err := b.policyText()
	if err != nil || text == nil {
		return err
	}
	bundle, err := b.Signer.Sign(ctx, text)
	if err != nil {
		return err
	}
	err = errors.Join(b.out.write(FilePolicy, text), b.out.write(BundleOf(FilePolicy), bundle))
	if bytes.Contains(text, []byte(FilePolicyDBX)) {
		err = errors.Join(err, b.out.write(FilePolicyDBX, b.PolicyDBX))
	}
	return err
}

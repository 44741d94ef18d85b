package image

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/sealift/sealift/attest/policy"
	"github.com/sealift/sealift/image/sign/bundle"
	"github.com/sealift/sealift/profiles"
)

func TestThePolicyOfAProfileIsSignedBesideTheImage(t *testing.T) {
	dbx := []byte("\x26\x16\xc4\xc1\x4c\x50\x92\x40\xac\xa9\x41\xf9\x36\x93\x43\x28")
	dbx = binary.LittleEndian.AppendUint32(dbx, 28+48)
	dbx = binary.LittleEndian.AppendUint64(dbx, 48<<32)
	dbx = append(dbx, make([]byte, 48)...)
	in := input(t)
	in.Outputs = []Output{OutputRaw}
	in.PolicyDBX = dbx
	in.Profile.Policy = profiles.Policy{
		Format: 1, Name: "demo", Version: 4, Images: []profiles.PolicyImage{{Name: "demo", Minimum: "1"}},
		SecureBoot: profiles.PolicySecureBoot{DBX: profiles.PolicyDBX{Superset: profiles.PolicyFile{File: "files/DBXUpdate.bin", SHA256: fmt.Sprintf("%x", sha256.Sum256(dbx))}}},
	}
	if _, err := Build(t.Context(), in); err != nil {
		t.Fatal(err)
	}
	read := func(name string) ([]byte, error) { return os.ReadFile(filepath.Join(in.Output, name)) }
	text, err := read(FilePolicy)
	if err != nil {
		t.Fatal(err)
	}
	sig, err := read(BundleOf(FilePolicy))
	if err != nil {
		t.Fatal(err)
	}
	if err := bundle.Verify(text, sig, publicPEM(t, in.Signer.Public())); err != nil {
		t.Error(err)
	}
	if d, err := policy.Parse(FilePolicy, text, read); err != nil || d.Name != "demo" || d.Version != 4 {
		t.Errorf("%v in\n%s", err, text)
	}

	// The next build without a policy takes it away.
	in.Profile.Policy = profiles.Policy{}
	if _, err := Build(t.Context(), in); err != nil {
		t.Fatal(err)
	}
	for _, name := range policyFiles() {
		if _, err := read(name); !os.IsNotExist(err) {
			t.Errorf("%s is still there: %v", name, err)
		}
	}

	in.Profile.Policy = profiles.Policy{Format: 1, Name: "demo", Version: 4, SecureBoot: profiles.PolicySecureBoot{DBX: profiles.PolicyDBX{Superset: profiles.PolicyFile{File: "x", SHA256: strings.Repeat("ab", 32)}}}}
	if _, err := Build(t.Context(), in); err == nil || !strings.Contains(err.Error(), "policy of profile demo") {
		t.Errorf("a policy whose file is another: %v", err)
	}
}

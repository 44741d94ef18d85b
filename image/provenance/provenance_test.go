package provenance

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"strings"
	"testing"

	slsa "github.com/in-toto/attestation/go/predicates/provenance/v1"
	intoto "github.com/in-toto/attestation/go/v1"
	"google.golang.org/protobuf/encoding/protojson"

	"github.com/sealift/sealift/image/manifest"
	"github.com/sealift/sealift/image/sign"
	"github.com/sealift/sealift/profiles"
)

var manifestText = []byte("the manifest")

func sample(t testing.TB) (*manifest.Manifest, *Statement) {
	t.Helper()
	m := &manifest.Manifest{
		Schema: manifest.Schema, Name: "demo", Version: "1", Arch: "amd64", Epoch: 1_780_000_000, LockDigest: [32]byte{1},
		Artifacts: []manifest.Artifact{
			{Kind: manifest.KindDisk, Name: "disk.raw", Size: 1, SHA256: [32]byte{2}},
			{Kind: manifest.KindUKI, Name: "uki.efi", Size: 1, SHA256: [32]byte{3}},
		},
	}
	s, err := New(Input{Manifest: m, ManifestName: "manifest.json", ManifestText: manifestText, Parameters: Parameters{
		ProfileDigest: [32]byte{4}, Keys: map[string]string{"image.pub": strings.Repeat("ab", 32)}, Version: "v0.1.0",
		Dependencies: []Resource{{Name: "a", URI: "https://example.org/a?x=1&y=<2>", Digest: map[string]string{"sha256": strings.Repeat("0f", 32)}}},
	}})
	if err != nil {
		t.Fatal(err)
	}
	return m, s
}

func TestAStatementSurvivesEncodingAndIsTheSameTwice(t *testing.T) {
	_, s := sample(t)
	a, err := s.Encode()
	if err != nil {
		t.Fatal(err)
	}
	back, err := Decode(a)
	if err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(s, back) {
		t.Errorf("got %+v, want %+v", back, s)
	}
	_, again := sample(t)
	if b, err := again.Encode(); err != nil || string(a) != string(b) {
		t.Errorf("two statements differ (%v):\n%s\n%s", err, a, b)
	}
}

func TestTheLibraryOfInTotoFindsTheStatementValid(t *testing.T) {
	_, s := sample(t)
	b, err := s.Encode()
	if err != nil {
		t.Fatal(err)
	}
	var st intoto.Statement
	if err := protojson.Unmarshal(b, &st); err != nil {
		t.Fatal(err)
	}
	if err := st.Validate(); err != nil {
		t.Error(err)
	}
	raw, err := protojson.Marshal(st.GetPredicate())
	if err != nil {
		t.Fatal(err)
	}
	var p slsa.Provenance
	if err := protojson.Unmarshal(raw, &p); err != nil {
		t.Fatal(err)
	}
	if err := p.Validate(); err != nil {
		t.Error(err)
	}
	if got := p.GetBuildDefinition().GetExternalParameters().GetFields()["lock"].GetStructValue().GetFields()["digest"].GetStructValue().GetFields()["sha256"].GetStringValue(); got != hex.EncodeToString(append([]byte{1}, make([]byte, 31)...)) {
		t.Errorf("digest of the lock is %s", got)
	}
	if p.GetRunDetails().GetBuilder().GetId() != DefaultBuilder {
		t.Errorf("builder is %s", p.GetRunDetails().GetBuilder().GetId())
	}
}

func TestWhatTheManifestDoesNotSayIsFound(t *testing.T) {
	for name, c := range map[string]struct {
		edit func(*manifest.Manifest, *Statement)
		want string // part of the error; empty: no error
	}{
		"nothing":          {func(*manifest.Manifest, *Statement) {}, ""},
		"another artifact": {func(m *manifest.Manifest, _ *Statement) { m.Artifacts[0].SHA256[0]++ }, "subject disk.raw has digest"},
		"more artifacts": {func(m *manifest.Manifest, _ *Statement) {
			m.Artifacts = append(m.Artifacts, manifest.Artifact{Name: "more"})
		}, "no subject more"},
		"fewer artifacts":   {func(m *manifest.Manifest, _ *Statement) { m.Artifacts = m.Artifacts[:1] }, `"uki.efi" is not in the manifest`},
		"another manifest":  {func(_ *manifest.Manifest, s *Statement) { s.Subject[0].Digest["sha256"] = "00" }, "subject manifest.json has digest"},
		"no manifest":       {func(_ *manifest.Manifest, s *Statement) { s.Subject = s.Subject[1:] }, "no subject manifest.json"},
		"subject twice":     {func(_ *manifest.Manifest, s *Statement) { s.Subject = append(s.Subject, s.Subject[1]) }, "is there twice"},
		"subject no digest": {func(_ *manifest.Manifest, s *Statement) { s.Subject[1].Digest = nil }, "has digest"},
		"another name":      {func(m *manifest.Manifest, _ *Statement) { m.Name = "x" }, "profile is"},
		"another version":   {func(m *manifest.Manifest, _ *Statement) { m.Version = "x" }, "version is"},
		"another arch":      {func(m *manifest.Manifest, _ *Statement) { m.Arch = "arm64" }, "architecture is"},
		"another lock":      {func(m *manifest.Manifest, _ *Statement) { m.LockDigest[5]++ }, "lock is"},
		"another epoch":     {func(m *manifest.Manifest, _ *Statement) { m.Epoch++ }, "epoch is"},
	} {
		m, s := sample(t)
		c.edit(m, s)
		err := s.CheckManifest(m, "manifest.json", manifestText)
		if c.want == "" && err != nil || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
			t.Errorf("%s: got %v, want %q", name, err, c.want)
		}
	}
}

func TestOnlySignedStatementsOfThisTypeAreTaken(t *testing.T) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		t.Fatal(err)
	}
	pub := pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der})
	signer, err := sign.FromKey(key)
	if err != nil {
		t.Fatal(err)
	}
	_, s := sample(t)
	good, err := s.Encode()
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		text string
		want string
	}{
		"as made":            {string(good), ""},
		"another statement":  {strings.Replace(string(good), StatementType, "https://in-toto.io/Statement/v0.1", 1), "statement type"},
		"another predicate":  {strings.Replace(string(good), PredicateType, "https://slsa.dev/provenance/v0.2", 1), "predicate type"},
		"another build type": {strings.Replace(string(good), BuildType, "https://example.org/", 1), "build type"},
		"unknown field":      {strings.Replace(string(good), `{"_type"`, `{"x":1,"_type"`, 1), "unknown field"},
		"data behind":        {string(good) + "{}", "after the statement"},
		"no JSON":            {"x", "invalid"},
	} {
		b, err := signer.SignStatement(t.Context(), []byte(c.text))
		if err != nil {
			t.Fatal(err)
		}
		got, err := Verify(b, pub)
		if c.want == "" && (err != nil || got == nil) || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
			t.Errorf("%s: got %v, want %q", name, err, c.want)
		}
	}
	message, err := signer.Sign(t.Context(), good)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Verify(message, pub); err == nil {
		t.Error("a signature over a file is taken for a statement")
	}
}

// fill gives every field a value, and every digest one of its own.
func fill(v reflect.Value, name string, n *int) {
	switch v.Kind() {
	case reflect.Pointer:
		v.Set(reflect.New(v.Type().Elem()))
		fill(v.Elem(), name, n)
	case reflect.Struct:
		for i := range v.NumField() {
			fill(v.Field(i), v.Type().Field(i).Name, n)
		}
	case reflect.Slice:
		v.Set(reflect.MakeSlice(v.Type(), 1, 1))
		fill(v.Index(0), name, n)
	case reflect.Int64:
		v.SetInt(1)
	case reflect.String:
		*n++
		digest := fmt.Sprintf("%064x", *n)
		switch {
		case v.Type().Name() != "string" || name == "Layout":
		case name == "Digest":
			v.SetString("sha256:" + digest)
		case strings.HasSuffix(name, "SHA256") || name == "Sum" && v.Type().Name() == "string":
			v.SetString(digest)
		default:
			v.SetString(fmt.Sprintf("%s%d", strings.ToLower(name), *n))
		}
	}
}

// TestEveryDigestOfALockIsInTheProvenance fails when a lock learns to pin
// something that FromLock does not list.
func TestEveryDigestOfALockIsInTheProvenance(t *testing.T) {
	var l profiles.Lock
	n := 0
	fill(reflect.ValueOf(&l).Elem(), "", &n)
	// A module's sum has another form than those of sources.
	sums := func(all []profiles.LockedModule) {
		for i := range all {
			raw, err := hex.DecodeString(all[i].Sum)
			if err != nil {
				t.Fatal(err)
			}
			all[i].Sum = "h1:" + base64.StdEncoding.EncodeToString(raw)
		}
	}
	sums(l.Go.Modules)
	for i := range l.Sources {
		sums(l.Sources[i].Modules)
	}
	all, err := FromLock(&l)
	if err != nil {
		t.Fatal(err)
	}
	got, err := json.Marshal(all)
	if err != nil {
		t.Fatal(err)
	}
	text, err := l.Encode()
	if err != nil {
		t.Fatal(err)
	}
	var want []string
	for _, d := range regexp.MustCompile(`\b[0-9a-f]{64}\b`).FindAllString(string(text), -1) {
		if !strings.Contains(string(text), "profileDigest: "+d) && !strings.Contains(string(text), `profileDigest: "`+d) {
			want = append(want, d)
		}
	}
	for _, s := range regexp.MustCompile(`h1:[A-Za-z0-9+/]{43}=`).FindAllString(string(text), -1) {
		d, err := dirHash(s)
		if err != nil {
			t.Fatal(err)
		}
		want = append(want, d)
	}
	if len(want) < 8 {
		t.Fatalf("the lock has only %d digests:\n%s", len(want), text)
	}
	for _, d := range want {
		if !strings.Contains(string(got), d) {
			at := strings.Index(string(text), d)
			t.Errorf("digest %s is not in the provenance: ...%s", d, text[max(0, at-120):max(0, at)+64])
		}
	}
}

func TestTheLocksOfTheExamplesAreListed(t *testing.T) {
	files, err := filepath.Glob("../../profiles/*.lock.yaml")
	if err != nil || len(files) == 0 {
		t.Fatalf("no locks: %v", err)
	}
	for _, file := range files {
		l, err := profiles.LoadLock(file)
		if err != nil {
			t.Errorf("%v", err)
			continue
		}
		all, err := FromLock(l)
		if err != nil {
			t.Errorf("%s: %v", file, err)
		}
		for _, r := range all {
			if r.Name == "" || r.URI == "" || len(r.Digest) == 0 && r.Name != "Go toolchain" {
				t.Errorf("%s: %+v has no name, address or digest", file, r)
			}
		}
	}
}

func TestAFileOfTheBuildMachineIsNamedByItsDigest(t *testing.T) {
	file := filepath.Join(t.TempDir(), "agent")
	if err := os.WriteFile(file, []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	r, err := FromFile("sealift-agent", file)
	if err != nil || r.Digest["sha256"] != "2d711642b726b04401627ca9fbac32f5c8530fb1903cc4db02258717921a4881" || strings.Contains(r.URI, filepath.Dir(file)) {
		t.Errorf("got %+v, %v", r, err)
	}
	if _, err := FromFile("x", file+".none"); err == nil {
		t.Error("a file that is not there is listed")
	}
}

func FuzzDecode(f *testing.F) {
	_, s := sample(f)
	b, err := s.Encode()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Add([]byte(`{"_type":"x"}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		if s, err := Decode(b); err == nil {
			if s.Type != StatementType {
				t.Errorf("type %q is taken", s.Type)
			}
			_ = s.CheckManifest(&manifest.Manifest{}, "manifest.json", b) // must not panic
		}
	})
}

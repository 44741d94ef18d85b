package pcrsig_test

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-tpm/tpm2"

	"github.com/sealift/sealift/attest/tpm/pcrsig"
	"github.com/sealift/sealift/attest/tpm/tpmtest"
)

func newKey(t testing.TB, bits int) *rsa.PrivateKey {
	t.Helper()
	key, err := rsa.GenerateKey(rand.Reader, bits)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func publicPEM(t testing.TB, pub any) []byte {
	t.Helper()
	der, err := x509.MarshalPKIXPublicKey(pub)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der})
}

// measure is systemd's own tool for PCR 11 and its signatures.
const measure = "/usr/lib/systemd/systemd-measure"

func TestSignWritesWhatSystemdMeasureWrites(t *testing.T) {
	tpmtest.Tool(t, measure)
	d := tpmtest.Open(t)
	dir := t.TempDir()
	at := func(name string) string { return filepath.Join(dir, name) }
	key := newKey(t, 2048)
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	for name, data := range map[string][]byte{
		"linux": []byte("a kernel"),
		"key":   pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}),
		"pub":   publicPEM(t, key.Public()),
	} {
		if err := os.WriteFile(at(name), data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	run := func(args ...string) []byte {
		t.Helper()
		cmd := exec.Command(measure, args...)
		cmd.Stderr = os.Stderr
		out, err := cmd.Output()
		if err != nil {
			t.Fatalf("systemd-measure %s: %v", strings.Join(args, " "), err)
		}
		return bytes.TrimSpace(out)
	}
	var pcr struct {
		SHA256 []struct{ Hash string }
	}
	if err := json.Unmarshal(run("calculate", "--json=short", "--linux="+at("linux"), "--bank=sha256", "--phase=:"), &pcr); err != nil {
		t.Fatal(err)
	}
	want := run("sign", "--linux="+at("linux"), "--bank=sha256", "--phase=:",
		"--private-key="+at("key"), "--public-key="+at("pub"), "--tpm2-device=swtpm:path="+d.Socket)
	pcr11, err := hex.DecodeString(pcr.SHA256[0].Hash)
	if err != nil {
		t.Fatal(err)
	}
	got, err := pcrsig.Sign(key, map[string][]byte{"sha256": pcr11})
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Errorf("got  %s\nwant %s", got, want)
	}
}

func TestPolicyDigestIsTheTPMLibrarys(t *testing.T) {
	value := func(s string) []byte { d := sha256.Sum256([]byte(s)); return d[:] }
	for name, pcrs := range map[string]map[int][]byte{
		"one PCR":          {11: value("a")},
		"lowest, highest":  {0: value("a"), 23: value("b")},
		"order of indices": {15: value("a"), 2: value("b"), 11: value("c")},
	} {
		t.Run(name, func(t *testing.T) {
			h := sha256.New()
			var u []uint
			for i := range uint(24) {
				if v, ok := pcrs[int(i)]; ok {
					u = append(u, i)
					h.Write(v)
				}
			}
			calc, err := tpm2.NewPolicyCalculator(tpm2.TPMAlgSHA256)
			if err != nil {
				t.Fatal(err)
			}
			err = tpm2.PolicyPCR{
				PcrDigest: tpm2.TPM2BDigest{Buffer: h.Sum(nil)},
				Pcrs: tpm2.TPMLPCRSelection{PCRSelections: []tpm2.TPMSPCRSelection{{
					Hash: tpm2.TPMAlgSHA256, PCRSelect: tpm2.PCClientCompatible.PCRs(u...),
				}}},
			}.Update(calc)
			if err != nil {
				t.Fatal(err)
			}
			got, err := pcrsig.PolicyDigest("sha256", pcrs)
			if err != nil {
				t.Fatal(err)
			}
			if want := calc.Hash().Digest; !bytes.Equal(got, want) {
				t.Errorf("got %x, want %x", got, want)
			}
		})
	}
	for name, pcrs := range map[string]map[int][]byte{
		"none": {}, "negative": {-1: value("a")}, "above 23": {24: value("a")}, "of another bank": {11: make([]byte, 20)},
	} {
		if _, err := pcrsig.PolicyDigest("sha256", pcrs); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}

func TestSignedPolicyIsReadBackAndVerifies(t *testing.T) {
	key, other := newKey(t, 2048), newKey(t, 2048)
	pcr11 := bytes.Repeat([]byte{7}, 32)
	file, err := pcrsig.Sign(key, map[string][]byte{"sha256": pcr11})
	if err != nil {
		t.Fatal(err)
	}
	again, err := pcrsig.Sign(key, map[string][]byte{"sha256": pcr11})
	if err != nil || !bytes.Equal(file, again) {
		t.Errorf("a second signature differs, error %v", err)
	}
	entries, err := pcrsig.Parse(append(file, 0, 0, 0))
	if err != nil {
		t.Fatal(err)
	}
	if len(entries) != 1 || len(entries[0].PCRs) != 1 || entries[0].PCRs[0] != 11 || entries[0].KeyID != pcrsig.KeyID(&key.PublicKey) {
		t.Fatalf("got %+v", entries)
	}
	policy, _ := pcrsig.PolicyDigest("sha256", map[int][]byte{11: pcr11})
	if !bytes.Equal(entries[0].Policy[:], policy) {
		t.Errorf("policy: got %x, want %x", entries[0].Policy, policy)
	}
	if err := entries[0].Verify(&key.PublicKey); err != nil {
		t.Errorf("the signer's key: %v", err)
	}
	if err := entries[0].Verify(&other.PublicKey); err == nil {
		t.Error("another key verifies")
	}
	changed := entries[0]
	changed.Policy[0] ^= 1
	if err := changed.Verify(&key.PublicKey); err == nil {
		t.Error("a changed policy verifies")
	}
	if _, err := pcrsig.Sign(newKey(t, 3072), map[string][]byte{"sha256": pcr11}); err == nil {
		t.Error("a key of 3072 bits signs")
	}
	if _, err := pcrsig.Sign(key, map[string][]byte{"sha256": pcr11[:31]}); err == nil {
		t.Error("a value of 31 bytes is signed")
	}
	if _, err := pcrsig.Sign(key, nil); err == nil {
		t.Error("a file without a bank is signed")
	}
}

// entryJSON returns a well-formed file with one field of its entry replaced.
func entryJSON(field, value string) string {
	f := map[string]string{"pcrs": "[11]", "pkfp": `"` + strings.Repeat("ab", 32) + `"`, "pol": `"` + strings.Repeat("cd", 32) + `"`,
		"sig": `"` + strings.Repeat("AAAA", 64) + `"`}
	f[field] = value
	var parts []string
	for k, v := range f {
		parts = append(parts, `"`+k+`":`+v)
	}
	return `{"sha256":[{` + strings.Join(parts, ",") + `}]}`
}

func TestParseRefuses(t *testing.T) {
	if _, err := pcrsig.Parse([]byte(entryJSON("pcrs", "[0,11]"))); err != nil {
		t.Fatalf("the well-formed file: %v", err)
	}
	for name, file := range map[string]string{
		"nothing":               "",
		"a list":                "[]",
		"text behind":           entryJSON("pcrs", "[11]") + "{}",
		"an unknown bank":       `{"md5":[]}`,
		"an unknown field":      entryJSON("more", "1"),
		"no PCR":                entryJSON("pcrs", "[]"),
		"PCR 24":                entryJSON("pcrs", "[24]"),
		"a negative PCR":        entryJSON("pcrs", "[-1]"),
		"PCRs out of order":     entryJSON("pcrs", "[11,4]"),
		"a PCR twice":           entryJSON("pcrs", "[11,11]"),
		"a short fingerprint":   entryJSON("pkfp", `"ab"`),
		"a long policy":         entryJSON("pol", `"`+strings.Repeat("ab", 33)+`"`),
		"a policy not in hex":   entryJSON("pol", `"`+strings.Repeat("zz", 32)+`"`),
		"a short signature":     entryJSON("sig", `"AAAA"`),
		"a signature not in 64": entryJSON("sig", `"!"`),
		"too many entries":      `{"sha1":[` + strings.Repeat("{},", pcrsig.MaxEntries) + `{}]}`,
		"too many bytes":        strings.Repeat(" ", pcrsig.MaxSize) + "{}",
	} {
		if got, err := pcrsig.Parse([]byte(file)); err == nil {
			t.Errorf("%s: got %v, want an error", name, got)
		}
	}
}

func TestParseIsBoundedToTheByte(t *testing.T) {
	sig := func(n int) string {
		return entryJSON("sig", `"`+base64.StdEncoding.EncodeToString(make([]byte, n))+`"`)
	}
	one := strings.TrimSuffix(strings.TrimPrefix(entryJSON("pcrs", "[11]"), `{"sha256":[`), "]}")
	entries := func(n int) string { return `{"sha256":[` + strings.Repeat(one+",", n-1) + one + "]}" }
	padded := func(n int) string {
		return entryJSON("pcrs", "[11]") + strings.Repeat(" ", n-len(entryJSON("pcrs", "[11]")))
	}
	for name, tt := range map[string]struct {
		file string
		ok   bool
	}{
		"a signature of 127 bytes":  {sig(127), false},
		"a signature of 128 bytes":  {sig(128), true},
		"a signature of 1024 bytes": {sig(1024), true},
		"a signature of 1025 bytes": {sig(1025), false},
		"as many entries as may be": {entries(pcrsig.MaxEntries), true},
		"one entry more":            {entries(pcrsig.MaxEntries + 1), false},
		"as many bytes as may be":   {padded(pcrsig.MaxSize), true},
		"one byte more":             {padded(pcrsig.MaxSize + 1), false},
	} {
		if _, err := pcrsig.Parse([]byte(tt.file)); (err == nil) != tt.ok {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestParseKeyTakesOnlyRSA2048(t *testing.T) {
	key := newKey(t, 2048)
	good := publicPEM(t, key.Public())
	got, err := pcrsig.ParseKey(append(bytes.Clone(good), 0, 0))
	if err != nil || !got.Equal(key.Public()) {
		t.Fatalf("got %v, error %v", got, err)
	}
	ec, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	block, _ := pem.Decode(good)
	if _, err := pcrsig.ParseKey(append(bytes.Clone(good), bytes.Repeat([]byte{'\n'}, pcrsig.MaxSize-len(good))...)); err != nil {
		t.Errorf("as many bytes as may be: %v", err)
	}
	for name, file := range map[string][]byte{
		"nothing":        nil,
		"another type":   pem.EncodeToMemory(&pem.Block{Type: "RSA PUBLIC KEY", Bytes: block.Bytes}),
		"exponent 3":     publicPEM(t, &rsa.PublicKey{N: key.N, E: 3}),
		"one byte more":  append(bytes.Clone(good), bytes.Repeat([]byte{'\n'}, pcrsig.MaxSize-len(good)+1)...),
		"DER":            x509.MarshalPKCS1PublicKey(&key.PublicKey),
		"3072 bits":      publicPEM(t, newKey(t, 3072).Public()),
		"an ECC key":     publicPEM(t, ec.Public()),
		"two keys":       append(bytes.Clone(good), good...),
		"a private key":  pem.EncodeToMemory(&pem.Block{Type: "RSA PRIVATE KEY", Bytes: x509.MarshalPKCS1PrivateKey(key)}),
		"damaged DER":    pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: []byte{0x30, 1}}),
		"too many bytes": bytes.Repeat([]byte{'\n'}, pcrsig.MaxSize+1),
	} {
		if _, err := pcrsig.ParseKey(file); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}

func FuzzParse(f *testing.F) {
	key := newKey(f, 2048)
	file, err := pcrsig.Sign(key, map[string][]byte{"sha256": make([]byte, 32)})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(file)
	f.Add([]byte(entryJSON("pcrs", "[4,7,11]")))
	f.Add([]byte(`{"sha1":[],"sha256":null}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		entries, err := pcrsig.Parse(b)
		if err != nil {
			return
		}
		for _, e := range entries {
			if len(e.PCRs) == 0 || len(e.Signature) < 128 {
				t.Fatalf("accepted %+v", e)
			}
			e.Verify(&key.PublicKey)
		}
	})
}

func FuzzParseKey(f *testing.F) {
	f.Add(publicPEM(f, newKey(f, 2048).Public()))
	f.Add([]byte("-----BEGIN PUBLIC KEY-----\nMA==\n-----END PUBLIC KEY-----\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		if key, err := pcrsig.ParseKey(b); err == nil && key.N.BitLen() != 2048 {
			t.Fatalf("accepted a key of %d bits", key.N.BitLen())
		}
	})
}

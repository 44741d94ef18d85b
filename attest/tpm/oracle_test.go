package tpm

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"encoding/pem"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-tpm/tpm2"

	"github.com/sealift/sealift/attest"
	"github.com/sealift/sealift/attest/tpm/tpmtest"
)

// checkquote runs tpm2_checkquote on a quote.
func checkquote(t *testing.T, tool string, akPublic []byte, q attest.Quote, qualifying []byte) ([]byte, error) {
	t.Helper()
	dir := t.TempDir()
	file := func(name string, data []byte) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	return exec.Command(tool, "-u", file("ak", tpm2.Marshal(tpm2.BytesAs2B[tpm2.TPMTPublic](akPublic))), "-g", "sha256",
		"-m", file("attest", q.Attest), "-s", file("signature", q.Signature),
		"-f", file("pcrs", toolsPCRs(t, q)), "-q", hex.EncodeToString(qualifying)).CombinedOutput()
}

// What somebody else's verifier refuses of a quote, ours refuses, too, and with
// the finding that says why. Where the two differ, ours is the stricter.
func TestAlteredQuotesAreRefusedByCheckquoteAndByUs(t *testing.T) {
	tool := tpmtest.Tool(t, "tpm2_checkquote")
	_, dev, _, in := collected(t, tpmtest.Config{})
	in.Disk.GUID = "01020304-0506-0708-090a-0b0c0d0e0f10"
	ev, err := dev.Collect(t.Context(), in)
	if err != nil {
		t.Fatal(err)
	}
	qualifying := attest.QualifyingData(attest.Binding{
		Purpose: in.Purpose, Nonce: in.Nonce, Exporter: in.Exporter, TransportID: dev.tk.name.Buffer,
	}, ev)
	quoteOf := func(pcrs []int, extra []byte) attest.Quote {
		t.Helper()
		b, err := bankNamed("sha256")
		if err != nil {
			t.Fatal(err)
		}
		rsp, err := tpm2.Quote{
			SignHandle: dev.ak.auth(tpm2.PasswordAuth(nil)), QualifyingData: tpm2.TPM2BData{Buffer: extra},
			InScheme: tpm2.TPMTSigScheme{Scheme: tpm2.TPMAlgNull}, PCRSelect: b.selection(pcrs...),
		}.Execute(dev.transport)
		if err != nil {
			t.Fatal(err)
		}
		return attest.Quote{Bank: "sha256", Attest: rsp.Quoted.Bytes(), Signature: tpm2.Marshal(rsp.Signature), PCRs: sha256Quote(t, ev).PCRs}
	}
	good := sha256Quote(t, ev)
	another, fewer, none := quoteOf(attest.PolicyPCRs(), random(32)), quoteOf([]int{0, 1, 2}, qualifying), quoteOf(nil, qualifying)
	// A key with the same attributes, of another service.
	if _, err := dev.Identify("another service"); err != nil {
		t.Fatal(err)
	}
	foreign := quoteOf(attest.PolicyPCRs(), qualifying)
	flip := func(b []byte, at int) []byte { b = bytes.Clone(b); b[at] ^= 1; return b }
	values := func(change func(map[int][]byte)) map[int][]byte {
		out := map[int][]byte{}
		for p, v := range good.PCRs {
			out[p] = bytes.Clone(v)
		}
		change(out)
		return out
	}
	cases := map[string]struct {
		quote attest.Quote
		want  attest.Code // "" if it is good
		// lax: tpm2_checkquote has no way to know, or is known not to look.
		lax bool
	}{
		"as it was made":         {quote: good},
		"a PCR value altered":    {quote: attest.Quote{Attest: good.Attest, Signature: good.Signature, PCRs: values(func(m map[int][]byte) { m[7][0] ^= 1 })}, want: attest.CodeQuoteDigest},
		"two PCR values swapped": {quote: attest.Quote{Attest: good.Attest, Signature: good.Signature, PCRs: values(func(m map[int][]byte) { m[7], m[9] = m[9], m[7] })}, want: attest.CodeQuoteDigest},
		"its signature altered":  {quote: attest.Quote{Attest: good.Attest, Signature: flip(good.Signature, len(good.Signature)-1), PCRs: good.PCRs}, want: attest.CodeQuoteSignature},
		"its clock altered":      {quote: attest.Quote{Attest: flip(good.Attest, 6+2+34+2+32+7), Signature: good.Signature, PCRs: good.PCRs}, want: attest.CodeQuoteSignature},
		"its digest altered":     {quote: attest.Quote{Attest: flip(good.Attest, len(good.Attest)-1), Signature: good.Signature, PCRs: good.PCRs}, want: attest.CodeQuoteSignature},
		"its signature cut off":  {quote: attest.Quote{Attest: good.Attest, Signature: good.Signature[:len(good.Signature)-8], PCRs: good.PCRs}, want: attest.CodeMalformed},
		"cut off":                {quote: attest.Quote{Attest: good.Attest[:20], Signature: good.Signature, PCRs: good.PCRs}, want: attest.CodeQuoteSignature},
		"made for another nonce": {quote: another, want: attest.CodeQuoteEvidence},
		"made by another key":    {quote: foreign, want: attest.CodeQuoteSignature},
		"over other PCRs":        {quote: fewer, want: attest.CodeQuoteSelection, lax: true}, // CVE-2024-29039
		"over no PCR":            {quote: none, want: attest.CodeQuoteEmpty, lax: true},
		"a byte after its end":   {quote: attest.Quote{Attest: append(bytes.Clone(good.Attest), 0), Signature: good.Signature, PCRs: good.PCRs}, want: attest.CodeQuoteSignature},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			c.quote.Bank = "sha256"
			out, err := checkquote(t, tool, ev.AKPublic, c.quote, qualifying)
			switch {
			case c.want == "" && err != nil:
				t.Errorf("tpm2_checkquote: %v\n%s", err, out)
			case c.want != "" && err == nil && !c.lax:
				t.Errorf("tpm2_checkquote accepts it\n%s", out)
			}
			altered := *ev
			altered.Quotes = slices.Clone(ev.Quotes)
			for i := range altered.Quotes {
				if altered.Quotes[i].Bank == "sha256" {
					altered.Quotes[i] = c.quote
				}
			}
			codes := quoteFindings(&altered, in)
			if c.want == "" && len(codes) > 0 || c.want != "" && !slices.Contains(codes, c.want) {
				t.Errorf("our findings on the quote are %q, want %q", codes, c.want)
			}
		})
	}
}

// quoteFindings returns the findings about quotes. The policy is of no machine, so
// that everything else is found wanting.
func quoteFindings(ev *attest.Evidence, in CollectInput) []attest.Code {
	ch := &attest.Challenge{ID: "c", Purpose: in.Purpose, Nonce: in.Nonce, ActivationSecret: random(32), AKPublic: ev.AKPublic, EKPublic: ev.EKPublic, Expires: time.Now().Add(time.Minute)}
	r := attest.Verify(ev, ch, &attest.Session{Exporter: in.Exporter, Now: time.Now()}, &attest.Known{}, &attest.Policy{})
	var codes []attest.Code
	for _, f := range r.Findings {
		// The log and the SMBIOS table of these tests are junk.
		if strings.HasPrefix(string(f.Code), "quote.") || f.Code == attest.CodeMalformed && strings.Contains(f.Message, "quote") {
			codes = append(codes, f.Code)
		}
	}
	return codes
}

// openssl builds the same chains from the endorsement certificates of a TPM as
// the service does, for RSA and for ECC, and refuses the same.
func TestEndorsementChainsPassOpenssl(t *testing.T) {
	openssl := tpmtest.Tool(t, "openssl")
	for kind, c := range map[string]struct {
		conf tpmtest.Config
		drop uint32
	}{
		"ECC P-256": {conf: tpmtest.Config{P256Certificate: true}},
		"ECC P-384": {},
		"RSA-2048":  {drop: 0x01c00016},
		"RSA-3072":  {conf: tpmtest.Config{RSABits: 3072}, drop: 0x01c00016},
	} {
		t.Run(kind, func(t *testing.T) {
			d := c.conf.Open(t)
			if c.drop != 0 {
				d.UndefineNV(c.drop)
			}
			ek, err := New(d).EK()
			if err != nil {
				t.Fatal(err)
			}
			if ek.Kind != kind {
				t.Fatalf("the endorsement key is %s", ek.Kind)
			}
			damaged := bytes.Clone(ek.Certificates[0])
			damaged[len(damaged)-1] ^= 1
			stranger := tpmtest.NewCA(t)
			for name, v := range map[string]struct {
				leaf []byte
				ca   *tpmtest.CA
				ok   bool
			}{
				"as it is":                {ek.Certificates[0], d.CA, true},
				"damaged":                 {damaged, d.CA, false},
				"of an unknown authority": {ek.Certificates[0], stranger, false},
			} {
				dir := t.TempDir()
				file := func(name string, der []byte) string {
					path := filepath.Join(dir, name)
					if err := os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o600); err != nil {
						t.Fatal(err)
					}
					return path
				}
				out, err := exec.Command(openssl, "verify", "-x509_strict", "-no-CApath", "-no-CAstore", "-CAfile", file("root", v.ca.Root.Raw),
					"-untrusted", file("issuer", v.ca.Issuer.Raw), file("leaf", v.leaf)).CombinedOutput()
				// swtpm_localca leaves out what -x509_strict wants of a leaf.
				if err != nil && v.ok {
					out, err = exec.Command(openssl, "verify", "-no-CApath", "-no-CAstore", "-CAfile", file("root", v.ca.Root.Raw),
						"-untrusted", file("issuer", v.ca.Issuer.Raw), file("leaf", v.leaf)).CombinedOutput()
				}
				if (err == nil) != v.ok {
					t.Errorf("%s: openssl verify: %v\n%s", name, err, out)
				}
				_, findings := attest.VerifyEK(ek.Public, [][]byte{v.leaf}, &attest.TPMPolicy{
					Roots:   []attest.TPMRoot{{Class: attest.TPMSoftware, Certificate: v.ca.Root}, {Certificate: v.ca.Issuer, Intermediate: true}},
					Allowed: []attest.TPMClass{attest.TPMSoftware},
				}, time.Now())
				if (len(findings) == 0) != v.ok {
					t.Errorf("%s: our findings are %+v", name, findings)
				}
			}
		})
	}
}

// unsealSession is what one TPM2_Unseal looked like on the bus.
type unsealSession struct {
	salted    bool // TPM2_StartAuthSession was with a key of the TPM
	encrypted bool // the session encrypts the response's parameter
	data      []byte
}

// wire reads the commands that go to the TPM (Part 1, "Command/Response Structure").
type wire struct {
	*interposed
	salted  map[uint32]bool // by session handle
	unseals []unsealSession
}

func (w *wire) Send(cmd []byte) ([]byte, error) {
	rsp, err := w.interposed.Send(cmd)
	if err != nil || len(rsp) < 10 || binary.BigEndian.Uint32(rsp[6:]) != 0 {
		return rsp, err
	}
	switch tpm2.TPMCC(binary.BigEndian.Uint32(cmd[6:])) {
	case tpm2.TPMCCStartAuthSession:
		// tpmKey, bind, nonceCaller, encryptedSalt
		key := binary.BigEndian.Uint32(cmd[10:])
		rest := cmd[18:]
		rest = rest[2+binary.BigEndian.Uint16(rest):]
		w.salted[binary.BigEndian.Uint32(rsp[10:])] = key != uint32(tpm2.TPMRHNull) && binary.BigEndian.Uint16(rest) > 0
	case tpm2.TPMCCUnseal:
		// itemHandle, authorizationSize, sessionHandle, nonce, sessionAttributes
		session := binary.BigEndian.Uint32(cmd[18:])
		nonce := int(binary.BigEndian.Uint16(cmd[22:]))
		attributes := cmd[24+nonce]
		n := binary.BigEndian.Uint16(rsp[14:])
		w.unseals = append(w.unseals, unsealSession{w.salted[session], attributes&(1<<6) != 0, bytes.Clone(rsp[16 : 16+n])})
	}
	return rsp, err
}

// The session's key comes from a salt that only the TPM with the private key can
// read. Which key that is, the service has checked for the transport key: it
// wrapped the secret to no other.
func TestUnsealingIsSaltedAndEncryptedOnTheWire(t *testing.T) {
	d, dev, ev, _ := collected(t, tpmtest.Config{})
	w := &wire{interposed: &interposed{d, func(tpm2.TPMCC) {}}, salted: map[uint32]bool{}}
	dev.transport = w
	secret := random(32)
	if got, err := dev.Unwrap(wrap(t, ev.Transport.Public, sha256Quote(t, ev).PCRs, secret)); err != nil || !bytes.Equal(got, secret) {
		t.Fatal(err)
	}
	key, pub := signingKey(t)
	blob, err := dev.SealDeviceHalf(secret, pub)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := dev.UnsealDeviceHalf(blob, pub, signed(t, key, d.PCR("sha256", 11))); err != nil {
		t.Fatal(err)
	}
	if len(w.unseals) != 2 {
		t.Fatalf("%d times unsealed, want 2", len(w.unseals))
	}
	for i, u := range w.unseals {
		if !u.salted || !u.encrypted || len(u.data) != len(secret) || bytes.Equal(u.data, secret) {
			t.Errorf("unsealing %d: salted %t, encrypted %t, %d bytes, in clear %t", i, u.salted, u.encrypted, len(u.data), bytes.Equal(u.data, secret))
		}
	}
	if bytes.Equal(w.unseals[0].data, w.unseals[1].data) {
		t.Error("the same secret was encrypted to the same bytes twice")
	}
}

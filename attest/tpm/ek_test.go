package tpm

import (
	"bytes"
	"crypto/x509"
	"encoding/binary"
	"errors"
	"io/fs"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"

	"github.com/sealift/sealift/attest"
	"github.com/sealift/sealift/attest/tpm/tpmtest"
)

func TestEachKindOfEndorsementKeyIsChosenAndActivates(t *testing.T) {
	for _, tt := range []struct {
		name  string
		conf  tpmtest.Config
		with  func(*tpmtest.TPM)
		kind  string
		certs int
		fault string // in the one problem that is reported
	}{
		{name: "P-384 before RSA", kind: "ECC P-384", certs: 1},
		{name: "P-256 before P-384", conf: tpmtest.Config{P256Certificate: true}, kind: "ECC P-256", certs: 1},
		{name: "RSA where it alone has a certificate", kind: "RSA-2048", certs: 1,
			with: func(d *tpmtest.TPM) { d.UndefineNV(0x01c00016) }},
		{name: "P-256 where there is no certificate", conf: tpmtest.Config{NoCertificates: true}, kind: "ECC P-256"},
		{name: "with the chain from one index", conf: tpmtest.Config{Chain: true}, kind: "ECC P-384", certs: 2},
		{name: "with the chain from two indices", kind: "ECC P-384", certs: 3, with: func(d *tpmtest.TPM) {
			der := slices.Concat(d.CA.Issuer.Raw, d.CA.Root.Raw)
			d.DefineNV(0x01c00100, der[:500])
			d.DefineNV(0x01c00101, append(der[500:], 0xff, 0xff))
		}},
		{name: "without a chain that is cut off", kind: "ECC P-384", certs: 1, fault: "middle",
			with: func(d *tpmtest.TPM) { d.DefineNV(0x01c00100, d.CA.Issuer.Raw[:100]) }},
		{name: "not the key whose certificate is of another", kind: "ECC P-384", certs: 1, fault: "0x1c0000a",
			with: func(d *tpmtest.TPM) { d.DefineNV(0x01c0000a, d.CA.Issuer.Raw) }},
		{name: "not the key whose certificate is damaged", kind: "ECC P-384", certs: 1, fault: "no DER certificate",
			with: func(d *tpmtest.TPM) { d.DefineNV(0x01c0000a, make([]byte, 700)) }},
		{name: "P-256 with a nonce in NV", kind: "ECC P-256", certs: 1, with: func(d *tpmtest.TPM) {
			nonce := []byte("a nonce of the vendor's")
			p := tpm2.ECCEKTemplate
			p.Unique = tpm2.NewTPMUPublicID(tpm2.TPMAlgECC, &tpm2.TPMSECCPoint{
				X: tpm2.TPM2BECCParameter{Buffer: append(nonce, make([]byte, 32-len(nonce))...)},
				Y: tpm2.TPM2BECCParameter{Buffer: make([]byte, 32)},
			})
			d.DefineNV(0x01c0000a, certify(t, d, p))
			d.DefineNV(0x01c0000b, nonce)
		}},
		{name: "P-256 with the vendor's template in NV", kind: "ECC P-256", certs: 1, with: func(d *tpmtest.TPM) {
			p := tpm2.ECCEKTemplate
			p.ObjectAttributes.UserWithAuth = true
			d.DefineNV(0x01c0000a, append(certify(t, d, p), make([]byte, 40)...))
			d.DefineNV(0x01c0000c, tpm2.Marshal(p))
		}},
		{name: "P-256 of the high range", kind: "ECC P-256", certs: 1, with: func(d *tpmtest.TPM) {
			d.DefineNV(0x01c00014, certify(t, d, highRange(tpm2.TPMECCNistP256)))
		}},
		{name: "RSA of the high range", conf: tpmtest.Config{NoCertificates: true}, kind: "RSA-2048", certs: 1, with: func(d *tpmtest.TPM) {
			d.DefineNV(0x01c00012, certify(t, d, highRange(0)))
		}},
		{name: "RSA-3072 as swtpm makes it", conf: tpmtest.Config{RSABits: 3072}, kind: "RSA-3072", certs: 1,
			with: func(d *tpmtest.TPM) { d.UndefineNV(0x01c00016) }},
		{name: "RSA-3072", conf: tpmtest.Config{NoCertificates: true}, kind: "RSA-3072", certs: 1, with: func(d *tpmtest.TPM) {
			d.DefineNV(0x01c0001c, certify(t, d, highRSA3072()))
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			d := tt.conf.Open(t)
			if tt.with != nil {
				tt.with(d)
			}
			dev := New(d)
			id, err := dev.Identify("test")
			if err != nil {
				t.Fatal(err)
			}
			if id.EK.Kind != tt.kind || len(id.EK.Certificates) != tt.certs {
				t.Fatalf("got %s with %d certificates, problems %v, want %s with %d", id.EK.Kind, len(id.EK.Certificates), id.EK.Problems, tt.kind, tt.certs)
			}
			if tt.fault == "" && len(id.EK.Problems) > 0 {
				t.Errorf("got the problems %v, want none", id.EK.Problems)
			}
			if tt.fault != "" && (len(id.EK.Problems) != 1 || !strings.Contains(id.EK.Problems[0].Error(), tt.fault)) {
				t.Errorf("got the problems %v, want one with %q", id.EK.Problems, tt.fault)
			}
			for i, der := range id.EK.Certificates {
				c, err := x509.ParseCertificate(der)
				if err != nil {
					t.Fatalf("certificate %d: %v", i, err)
				}
				if want := []*x509.Certificate{c, d.CA.Issuer, d.CA.Root}[i]; !c.Equal(want) {
					t.Errorf("certificate %d: got %s, want %s", i, c.Subject, want.Subject)
				}
			}
			if tt.certs > 0 {
				policy := &attest.TPMPolicy{
					Roots: []attest.TPMRoot{
						{Class: attest.TPMSoftware, Certificate: d.CA.Root},
						{Class: attest.TPMSoftware, Certificate: d.CA.Issuer, Intermediate: true},
					},
					Allowed: []attest.TPMClass{attest.TPMSoftware},
				}
				if _, findings := attest.VerifyEK(id.EK.Public, id.EK.Certificates, policy, time.Now()); len(findings) > 0 {
					t.Errorf("a service that trusts the authority finds %+v", findings)
				}
			}
			for range 2 {
				blob, secret, want := credential(t, id)
				got, err := dev.Activate(blob, secret)
				if err != nil || !bytes.Equal(got, want) {
					t.Fatalf("activate: got equal %v, error %v", bytes.Equal(got, want), err)
				}
			}
			empty(t, d, dev)

			d.Reset()
			again, err := New(d).Identify("test")
			if err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(again.AKName, id.AKName) || !bytes.Equal(again.EK.Public, id.EK.Public) {
				t.Error("the keys are not the same after a reboot")
			}
		})
	}
}

// certify makes the endorsement key of a template and returns a certificate of it.
func certify(t *testing.T, d *tpmtest.TPM, template tpm2.TPMTPublic) []byte {
	t.Helper()
	rsp, err := tpm2.CreatePrimary{PrimaryHandle: hierarchy(tpm2.TPMRHEndorsement), InPublic: tpm2.New2B(template)}.Execute(d)
	if err != nil {
		t.Fatal(err)
	}
	defer tpm2.FlushContext{FlushHandle: rsp.ObjectHandle}.Execute(d)
	public, err := rsp.OutPublic.Contents()
	if err != nil {
		t.Fatal(err)
	}
	pub, err := tpm2.Pub(*public)
	if err != nil {
		t.Fatal(err)
	}
	return d.CA.Certify(t, pub).Raw
}

func TestPolicyBIsPolicySecretOrAuthorizeNV(t *testing.T) {
	for _, tt := range []struct {
		alg tpm2.TPMAlgID
		nv  []byte // PolicyC: TPM2_PolicyAuthorizeNV of the index that the profile names
	}{
		{tpm2.TPMAlgSHA256, []byte{
			0x37, 0x67, 0xe2, 0xed, 0xd4, 0x3f, 0xf4, 0x5a, 0x3a, 0x7e, 0x1e, 0xae, 0xfc, 0xef, 0x78, 0x64,
			0x3d, 0xca, 0x96, 0x46, 0x32, 0xe7, 0xaa, 0xd8, 0x2c, 0x67, 0x3a, 0x30, 0xd8, 0x63, 0x3f, 0xde,
		}},
		{tpm2.TPMAlgSHA384, []byte{
			0xd6, 0x03, 0x2c, 0xe6, 0x1f, 0x2f, 0xb3, 0xc2, 0x40, 0xeb, 0x3c, 0xf6, 0xa3, 0x32, 0x37, 0xef,
			0x2b, 0x6a, 0x16, 0xf4, 0x29, 0x3c, 0x22, 0xb4, 0x55, 0xe2, 0x61, 0xcf, 0xfd, 0x21, 0x7a, 0xd5,
			0xb4, 0x94, 0x7c, 0x2d, 0x73, 0xe6, 0x30, 0x05, 0xee, 0xd2, 0xdc, 0x2b, 0x35, 0x93, 0xd1, 0x65,
		}},
	} {
		calc, err := tpm2.NewPolicyCalculator(tt.alg)
		if err != nil {
			t.Fatal(err)
		}
		if err := (tpm2.PolicySecret{AuthHandle: tpm2.TPMRHEndorsement}).Update(calc); err != nil {
			t.Fatal(err)
		}
		a := calc.Hash().Digest
		calc.Reset()
		or := tpm2.PolicyOr{PHashList: tpm2.TPMLDigest{Digests: []tpm2.TPM2BDigest{{Buffer: a}, {Buffer: tt.nv}}}}
		if err := or.Update(calc); err != nil {
			t.Fatal(err)
		}
		if got, want := policyB(tt.alg), calc.Hash().Digest; !bytes.Equal(got, want) {
			t.Errorf("policy B with %#x: got %x, want %x", uint16(tt.alg), got, want)
		}
	}
}

func TestAttestationKeyDependsOnTheService(t *testing.T) {
	d := tpmtest.Open(t)
	dev := New(d)
	a, err := dev.Identify("a")
	if err != nil {
		t.Fatal(err)
	}
	b, err := dev.Identify("b")
	if err != nil {
		t.Fatal(err)
	}
	if bytes.Equal(a.AKName, b.AKName) {
		t.Error("two services get the same attestation key")
	}
	public, err := tpm2.Unmarshal[tpm2.TPMTPublic](b.AKPublic)
	if err != nil {
		t.Fatal(err)
	}
	want := tpm2.TPMAObject{FixedTPM: true, FixedParent: true, SensitiveDataOrigin: true, UserWithAuth: true, Restricted: true, SignEncrypt: true, NoDA: true}
	if public.ObjectAttributes != want {
		t.Errorf("attributes: got %+v, want %+v", public.ObjectAttributes, want)
	}
	empty(t, d, dev)
}

func TestActivateRefuses(t *testing.T) {
	d := tpmtest.Open(t)
	dev := New(d)
	if _, err := dev.Activate([]byte{1}, []byte{1}); !errors.Is(err, errNotIdentified) {
		t.Errorf("before Identify: got %v", err)
	}
	id, err := dev.Identify("test")
	if err != nil {
		t.Fatal(err)
	}
	blob, secret, _ := credential(t, id)
	other, err := dev.Identify("another service")
	if err != nil {
		t.Fatal(err)
	}
	otherBlob, otherSecret, _ := credential(t, other)
	if _, err = dev.Identify("test"); err != nil {
		t.Fatal(err)
	}
	damaged := bytes.Clone(blob)
	damaged[len(damaged)-1] ^= 1
	for name, in := range map[string]struct {
		blob, secret []byte
		fault        string // of what the TPM does not see
	}{
		"no credential":           {nil, secret, "got a credential of 0 bytes"},
		"no secret":               {blob, nil, "got an encrypted secret of 0 bytes"},
		"a long credential":       {make([]byte, maxCredential+1), secret, "got a credential of 257 bytes"},
		"a long secret":           {blob, make([]byte, maxEncryptedSecret+1), "got an encrypted secret of 513 bytes"},
		"a damaged credential":    {damaged, secret, ""},
		"garbage":                 {random(64), random(64), ""},
		"one for another key":     {otherBlob, otherSecret, ""},
		"the parts of two":        {blob, otherSecret, ""},
		"the longest that it may": {make([]byte, maxCredential), make([]byte, maxEncryptedSecret), ""},
	} {
		if got, err := dev.Activate(in.blob, in.secret); err == nil || got != nil || strings.Contains(err.Error(), "bytes, want") != (in.fault != "") || !strings.Contains(err.Error(), in.fault) {
			t.Errorf("%s: got %d bytes and %v, want an error with %q", name, len(got), err, in.fault)
		}
	}
	if _, err := dev.Activate(blob, secret); err != nil {
		t.Errorf("the right one after all of these: %v", err)
	}
	empty(t, d, dev)
}

func TestOpenNamesWhatIsMissing(t *testing.T) {
	path := filepath.Join(t.TempDir(), "tpm")
	if _, err := Open(path); !errors.Is(err, fs.ErrNotExist) || !strings.Contains(err.Error(), path) {
		t.Errorf("got %v, want an error that names %s", err, path)
	}
}

func FuzzSplitCertificates(f *testing.F) {
	f.Add([]byte{0x30, 3, 2, 1, 1, 0x30, 0, 0xff})
	f.Add([]byte{0x30, 0x82, 0x10, 0})
	f.Add([]byte{0x30, 0x84, 0xff, 0xff, 0xff, 0xff})
	f.Fuzz(func(t *testing.T, b []byte) {
		certs, rest, _ := splitCertificates(b)
		n := len(rest)
		for _, c := range certs {
			if len(c) > attest.MaxCertificate {
				t.Fatalf("a certificate of %d bytes", len(c))
			}
			n += len(c)
		}
		if n > len(b) {
			t.Fatalf("%d bytes came out of %d", n, len(b))
		}
	})
}

func TestHierarchyWithAPasswordIsNamed(t *testing.T) {
	d := tpmtest.Open(t)
	_, err := tpm2.HierarchyChangeAuth{
		AuthHandle: hierarchy(tpm2.TPMRHEndorsement),
		NewAuth:    tpm2.TPM2BAuth{Buffer: []byte("password")},
	}.Execute(d)
	if err != nil {
		t.Fatal(err)
	}
	dev := New(d)
	if _, err := dev.Identify("test"); err == nil || !strings.Contains(err.Error(), "clear the TPM") {
		t.Errorf("got %v, want an error that says what to do", err)
	}
	empty(t, d, dev)
}

func TestTheServiceChoosesTheKeyByWhichItKnowsTheTPM(t *testing.T) {
	d := tpmtest.Config{}.Open(t)
	d.UndefineNV(0x01c00016)
	first := New(d)
	before, err := first.Identify("test")
	if err = errors.Join(err, first.Close()); err != nil {
		t.Fatal(err)
	}
	// An update of the TPM's firmware brings a certificate of another kind.
	d.DefineNV(0x01c0000a, certify(t, d, tpm2.ECCEKTemplate))
	dev := New(d)
	after, err := dev.Identify("test")
	if err != nil {
		t.Fatal(err)
	}
	if before.EK.Kind != "RSA-2048" || after.EK.Kind != "ECC P-256" || !bytes.Equal(before.AKName, after.AKName) {
		t.Fatalf("got %s, then %s, the same attestation key: %t", before.EK.Kind, after.EK.Kind, bytes.Equal(before.AKName, after.AKName))
	}
	machine, err := attest.EKMachineID(before.EK.Public)
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		id, err := dev.IdentifyAs("test", machine)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(id.EK.Public, before.EK.Public) || !slices.EqualFunc(id.EK.Certificates, before.EK.Certificates, bytes.Equal) || !bytes.Equal(id.AKName, before.AKName) {
			t.Errorf("got another identity: %s", id.EK.Kind)
		}
		blob, secret, want := credential(t, id)
		if got, err := dev.Activate(blob, secret); err != nil || !bytes.Equal(got, want) {
			t.Errorf("activate: got equal %t, error %v", bytes.Equal(got, want), err)
		}
	}
	if _, err := dev.IdentifyAs("test", attest.MachineID{1}); !errors.Is(err, errNoSuchKey) {
		t.Errorf("another machine's: got %v", err)
	}
	if _, err := dev.Identify("test"); err != nil {
		t.Errorf("after that: %v", err)
	}
	empty(t, d, dev)
}

func TestEachOtherCertifiedKeyIsProvenToBeInTheTPM(t *testing.T) {
	for _, tt := range []struct {
		name  string
		conf  tpmtest.Config
		with  func(*tpmtest.TPM)
		kinds []tpm2.TPMAlgID
		fault string
	}{
		{name: "RSA beside P-384", kinds: []tpm2.TPMAlgID{tpm2.TPMAlgRSA}},
		{name: "P-384 and RSA beside P-256", conf: tpmtest.Config{P256Certificate: true}, kinds: []tpm2.TPMAlgID{tpm2.TPMAlgECC, tpm2.TPMAlgRSA}},
		{name: "none", with: func(d *tpmtest.TPM) { d.UndefineNV(0x01c00016) }},
		{name: "none without certificates", conf: tpmtest.Config{NoCertificates: true}},
		{name: "the others where one is damaged", kinds: []tpm2.TPMAlgID{tpm2.TPMAlgRSA}, fault: "0x1c00014",
			with: func(d *tpmtest.TPM) { d.DefineNV(0x01c00014, d.CA.Issuer.Raw) }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			d := tt.conf.Open(t)
			if tt.with != nil {
				tt.with(d)
			}
			dev := New(d)
			if _, err := dev.EachOtherEK(nil); !errors.Is(err, errNotIdentified) {
				t.Errorf("before Identify: got %v", err)
			}
			id, err := dev.Identify("test")
			if err != nil {
				t.Fatal(err)
			}
			loaded := d.Objects()
			var kinds []tpm2.TPMAlgID
			n, err := dev.EachOtherEK(func(ekPublic []byte) error {
				p, err := tpm2.Unmarshal[tpm2.TPMTPublic](ekPublic)
				if err != nil {
					return err
				}
				kinds = append(kinds, p.Type)
				blob, secret, want := credential(t, &Identity{EK: &EK{Public: ekPublic}, AKPublic: id.AKPublic, AKName: id.AKName})
				got, err := dev.Activate(blob, secret)
				if err == nil && !bytes.Equal(got, want) {
					err = errors.New("another secret")
				}
				return err
			})
			if tt.fault == "" && err != nil || tt.fault != "" && (err == nil || !strings.Contains(err.Error(), tt.fault)) {
				t.Errorf("got the error %v, want %q", err, tt.fault)
			}
			if n != len(tt.kinds) || !slices.Equal(kinds, tt.kinds) {
				t.Errorf("got %d keys of the types %v, want %v", n, kinds, tt.kinds)
			}
			// The identity is the same as before, and loaded: what it has to activate
			// next may not wait for a chip to make its key again.
			if got := d.Objects(); got != loaded {
				t.Errorf("%d objects are loaded, want %d", got, loaded)
			}
			blob, secret, want := credential(t, id)
			if got, err := dev.Activate(blob, secret); err != nil || !bytes.Equal(got, want) {
				t.Errorf("activate: got equal %t, error %v", bytes.Equal(got, want), err)
			}
			empty(t, d, dev)
		})
	}
}

// What cannot be mended by trying again must be told from what can.
func TestCertificatesWithoutAKeyAreToldFromKeysThatWereNotProven(t *testing.T) {
	no := errors.New("no")
	for claim, tt := range map[string]struct {
		with     func(*tpmtest.TPM)
		prove    error
		break_   func(*failing)
		unusable bool
		fails    bool
	}{
		"nothing is wrong":             {},
		"a certificate of another key": {with: func(d *tpmtest.TPM) { d.DefineNV(0x01c00014, d.CA.Issuer.Raw) }, unusable: true, fails: true},
		"no certificate at all":        {with: func(d *tpmtest.TPM) { d.DefineNV(0x01c00014, bytes.Repeat([]byte{0xff}, 700)) }, unusable: true, fails: true},
		"a template that is none":      {with: func(d *tpmtest.TPM) { d.DefineNV(0x01c00014, d.CA.Issuer.Raw); d.DefineNV(0x01c00015, []byte("none")) }, unusable: true, fails: true},
		"a template that the TPM refuses": {with: func(d *tpmtest.TPM) {
			d.DefineNV(0x01c00014, d.CA.Issuer.Raw)
			d.DefineNV(0x01c00015, tpm2.Marshal(impossible()))
		}, unusable: true, fails: true},
		"a key that was not proven":           {prove: no, fails: true},
		"that beside a certificate of no key": {with: func(d *tpmtest.TPM) { d.DefineNV(0x01c00014, d.CA.Issuer.Raw) }, prove: no, fails: true},
		"a TPM that fails for once":           {break_: func(f *failing) { f.code, f.answer = tpm2.TPMCCCreatePrimary, tpm2.TPMRCRetry }, fails: true},
		"a TPM that fails in the end":         {with: func(d *tpmtest.TPM) { d.DefineNV(0x01c00014, d.CA.Issuer.Raw) }, break_: func(f *failing) { f.code, f.answer, f.after = tpm2.TPMCCCreatePrimary, tpm2.TPMRCRetry, 2 }, fails: true},
	} {
		t.Run(claim, func(t *testing.T) {
			d := tpmtest.Open(t)
			if tt.with != nil {
				tt.with(d)
			}
			f := &failing{TPM: d}
			dev := New(f)
			if _, err := dev.Identify("test"); err != nil {
				t.Fatal(err)
			}
			if tt.break_ != nil {
				tt.break_(f)
			}
			_, err := dev.EachOtherEK(func([]byte) error { return tt.prove })
			if (err != nil) != tt.fails || errors.As(err, new(*UnusableKeysError)) != tt.unusable {
				t.Errorf("got %v, want an error %t that is of unusable keys alone %t", err, tt.fails, tt.unusable)
			}
			if tt.prove != nil && !errors.Is(err, no) {
				t.Errorf("got %v, want %v", err, no)
			}
			if f.code == 0 {
				empty(t, d, dev)
			}
		})
	}
}

// impossible is a template of a key that no TPM makes: of an unknown curve.
func impossible() tpm2.TPMTPublic {
	p := highRange(tpm2.TPMECCNistP256)
	p.Parameters = tpm2.NewTPMUPublicParms(tpm2.TPMAlgECC, &tpm2.TPMSECCParms{Symmetric: aesCFB(128), CurveID: 0x7777})
	return p
}

// failing is a TPM that answers one command with an error, after some of them.
type failing struct {
	transport.TPM
	code   tpm2.TPMCC // 0: none
	answer tpm2.TPMRC
	after  int
}

func (f *failing) Send(command []byte) ([]byte, error) {
	if f.code != 0 && len(command) >= 10 && binary.BigEndian.Uint32(command[6:]) == uint32(f.code) {
		if f.after--; f.after < 0 {
			return binary.BigEndian.AppendUint32([]byte{0x80, 0x01, 0, 0, 0, 10}, uint32(f.answer)), nil
		}
	}
	return f.TPM.Send(command)
}

func TestAKeyThatIsNotProvenDoesNotKeepTheOthers(t *testing.T) {
	d := tpmtest.Config{P256Certificate: true}.Open(t)
	dev := New(d)
	if _, err := dev.Identify("test"); err != nil {
		t.Fatal(err)
	}
	no := errors.New("no")
	if n, err := dev.EachOtherEK(func([]byte) error { return no }); n != 2 || !errors.Is(err, no) {
		t.Errorf("got %d keys, error %v", n, err)
	}
	empty(t, d, dev)
}

// A machine whose certificate only the service has stays who it is when its TPM gets one
// of another kind.
func TestTheServiceKnowsAKeyOfWhichTheTPMHasNoCertificate(t *testing.T) {
	d := tpmtest.Config{NoCertificates: true}.Open(t)
	dev := New(d)
	before, err := dev.Identify("test")
	if err != nil {
		t.Fatal(err)
	}
	machine, err := attest.EKMachineID(before.EK.Public)
	if err != nil {
		t.Fatal(err)
	}
	d.DefineNV(0x01c00002, certify(t, d, tpm2.RSAEKTemplate))
	after, err := dev.Identify("test")
	if err != nil || after.EK.Kind != "RSA-2048" {
		t.Fatalf("got %+v, %v", after, err)
	}
	id, err := dev.IdentifyAs("test", machine)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(id.EK.Public, before.EK.Public) || len(id.EK.Certificates) != 0 || id.EK.Kind != "ECC P-256" {
		t.Errorf("got %s with %d certificates", id.EK.Kind, len(id.EK.Certificates))
	}
	blob, secret, want := credential(t, id)
	if got, err := dev.Activate(blob, secret); err != nil || !bytes.Equal(got, want) {
		t.Errorf("activate: %v", err)
	}
	if _, err := dev.IdentifyAs("test", attest.MachineID{1}); !errors.Is(err, errNoSuchKey) {
		t.Errorf("another machine's: got %v", err)
	}
	empty(t, d, dev)
}

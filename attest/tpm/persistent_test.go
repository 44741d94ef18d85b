package tpm

import (
	"bytes"
	"encoding/binary"
	"testing"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"

	"github.com/sealift/sealift/attest"
	"github.com/sealift/sealift/attest/tpm/tpmtest"
)

// evict removes what is persistent at a handle.
func evict(t *testing.T, d *tpmtest.TPM, handle tpm2.TPMHandle) {
	t.Helper()
	rsp, err := tpm2.ReadPublic{ObjectHandle: handle}.Execute(d)
	if err != nil {
		t.Fatal(err)
	}
	persist(t, d, tpm2.NamedHandle{Handle: handle, Name: rsp.Name}, handle)
}

func persist(t *testing.T, d *tpmtest.TPM, object tpm2.NamedHandle, handle tpm2.TPMHandle) {
	t.Helper()
	_, err := tpm2.EvictControl{Auth: hierarchy(tpm2.TPMRHOwner), ObjectHandle: &object, PersistentHandle: handle}.Execute(d)
	if err != nil {
		t.Fatal(err)
	}
}

// plant puts another primary key where a persistent one is.
func plant(t *testing.T, d *tpmtest.TPM, handle, of tpm2.TPMHandle, template tpm2.TPMTPublic) {
	t.Helper()
	evict(t, d, handle)
	rsp, err := tpm2.CreatePrimary{PrimaryHandle: hierarchy(of), InPublic: tpm2.New2B(template)}.Execute(d)
	if err != nil {
		t.Fatal(err)
	}
	defer tpm2.FlushContext{FlushHandle: rsp.ObjectHandle}.Execute(d)
	persist(t, d, tpm2.NamedHandle{Handle: rsp.ObjectHandle, Name: rsp.Name}, handle)
}

// unlike is the template of the RSA-2048 endorsement key, made unique in another way.
func unlike() tpm2.TPMTPublic {
	p := tpm2.RSAEKTemplate
	p.Unique = tpm2.NewTPMUPublicID(tpm2.TPMAlgRSA, &tpm2.TPM2BPublicKeyRSA{})
	return p
}

func TestAPersistentKeyTellsThatACertificateDoesNotFit(t *testing.T) {
	const low, at = 0x01c00002, 0x81010001
	only := func(d *tpmtest.TPM) { d.UndefineNV(0x01c00016) }
	misfit := func(d *tpmtest.TPM) { only(d); d.UndefineNV(low); d.DefineNV(low, d.CA.Issuer.Raw) }
	for _, tt := range []struct {
		name     string
		conf     tpmtest.Config
		with     func(*testing.T, *tpmtest.TPM)
		kind     string
		passed   bool
		made     int // primary keys, with the attestation key
		thorough string
	}{
		{"the certificate is the persistent key's", tpmtest.Config{}, func(_ *testing.T, d *tpmtest.TPM) { only(d) }, "RSA-2048", false, 2, "RSA-2048"},
		{"the certificate is of another", tpmtest.Config{}, func(_ *testing.T, d *tpmtest.TPM) { misfit(d) }, "ECC P-256", true, 2, "ECC P-256"},
		{"the certificate of RSA-3072 is of another", tpmtest.Config{RSABits: 3072}, func(_ *testing.T, d *tpmtest.TPM) {
			only(d)
			d.UndefineNV(0x01c0001c)
			d.DefineNV(0x01c0001c, d.CA.Issuer.Raw)
		}, "ECC P-256", true, 2, "ECC P-256"},
		{"no key is persistent", tpmtest.Config{}, func(t *testing.T, d *tpmtest.TPM) {
			misfit(d)
			evict(t, d, at)
		}, "ECC P-256", false, 3, "ECC P-256"},
		{"there is no certificate", tpmtest.Config{}, func(_ *testing.T, d *tpmtest.TPM) { only(d); d.UndefineNV(low) }, "ECC P-256", false, 2, "ECC P-256"},
		// Whoever owned the TPM can have put these there. The last could also be
		// honest software's.
		{"another template's key is persistent", tpmtest.Config{}, func(t *testing.T, d *tpmtest.TPM) {
			only(d)
			plant(t, d, at, tpm2.TPMRHEndorsement, highRange(0))
		}, "RSA-2048", false, 2, "RSA-2048"},
		{"an ECC key is persistent", tpmtest.Config{}, func(t *testing.T, d *tpmtest.TPM) {
			only(d)
			plant(t, d, at, tpm2.TPMRHEndorsement, tpm2.ECCEKTemplate)
		}, "RSA-2048", false, 2, "RSA-2048"},
		{"another hierarchy's key is persistent", tpmtest.Config{}, func(t *testing.T, d *tpmtest.TPM) {
			only(d)
			plant(t, d, at, tpm2.TPMRHOwner, tpm2.RSAEKTemplate)
		}, "RSA-2048", false, 2, "RSA-2048"},
		{"the persistent key lacks the vendor's nonce", tpmtest.Config{}, func(t *testing.T, d *tpmtest.TPM) {
			only(d)
			p := tpm2.RSAEKTemplate
			p.Unique = tpm2.NewTPMUPublicID(tpm2.TPMAlgRSA, &tpm2.TPM2BPublicKeyRSA{Buffer: append([]byte("nonce"), make([]byte, 251)...)})
			der := certify(t, d, p)
			d.UndefineNV(low)
			d.DefineNV(low, der)
			d.DefineNV(low+1, []byte("nonce"))
		}, "RSA-2048", false, 2, "RSA-2048"},
		{"the persistent key is not of the vendor's template", tpmtest.Config{}, func(t *testing.T, d *tpmtest.TPM) {
			only(d)
			der := certify(t, d, unlike())
			d.UndefineNV(low)
			d.DefineNV(low, der)
			d.DefineNV(low+2, tpm2.Marshal(unlike()))
		}, "RSA-2048", false, 2, "RSA-2048"},
		{"the persistent key was made unique in another way", tpmtest.Config{}, func(t *testing.T, d *tpmtest.TPM) {
			only(d)
			plant(t, d, at, tpm2.TPMRHEndorsement, unlike())
		}, "ECC P-256", true, 2, "RSA-2048"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			d := tt.conf.Open(t)
			tt.with(t, d)
			made := 0
			dev := New(&interposed{TPM: d, before: func(c tpm2.TPMCC) {
				if c == tpm2.TPMCCCreatePrimary {
					made++
				}
			}})
			id, err := dev.Identify("test")
			if err != nil {
				t.Fatal(err)
			}
			if id.EK.Kind != tt.kind || id.EK.PassedOver != tt.passed || made != tt.made {
				t.Errorf("got %s, passed over %t, %d keys made, problems %v; want %s, %t, %d", id.EK.Kind, id.EK.PassedOver, made, id.EK.Problems, tt.kind, tt.passed, tt.made)
			}
			if tt.passed && len(id.EK.Problems) != 1 {
				t.Errorf("problems: %v", id.EK.Problems)
			}
			blob, secret, want := credential(t, id)
			if got, err := dev.Activate(blob, secret); err != nil || !bytes.Equal(got, want) {
				t.Errorf("activate: %v", err)
			}
			all, err := dev.IdentifyByKeys("test")
			if err != nil {
				t.Fatal(err)
			}
			if all.EK.Kind != tt.thorough || all.EK.PassedOver || !bytes.Equal(all.AKName, id.AKName) {
				t.Errorf("by keys: got %s, passed over %t", all.EK.Kind, all.EK.PassedOver)
			}
			// An install names the machine by this: a service that enrolled another key
			// would not know the box that comes to this one.
			installs := New(d)
			if ek, err := installs.EK(); err != nil || ek.Kind != tt.thorough || ek.PassedOver || !bytes.Equal(ek.Public, all.EK.Public) {
				t.Errorf("an install: got %+v, %v", ek, err)
			}
			if err := installs.flush(&installs.ek); err != nil {
				t.Error(err)
			}
			if all.EK.Kind == "ECC P-256" {
				empty(t, d, dev)
				return
			}
			machine, err := attest.EKMachineID(all.EK.Public)
			if err != nil {
				t.Fatal(err)
			}
			if as, err := dev.IdentifyAs("test", machine); err != nil || as.EK.Kind != all.EK.Kind {
				t.Errorf("as the machine that it is: %v", err)
			}
			empty(t, d, dev)
		})
	}
}

// answering is a TPM that answers one command with prepared bytes.
type answering struct {
	transport.TPM
	code   tpm2.TPMCC
	answer []byte
}

func (a *answering) Send(command []byte) ([]byte, error) {
	if len(command) >= 10 && binary.BigEndian.Uint32(command[6:]) == uint32(a.code) {
		return bytes.Clone(a.answer), nil
	}
	return a.TPM.Send(command)
}

func TestADamagedPublicAreaOfAPersistentKeyTellsNothing(t *testing.T) {
	d := tpmtest.Open(t)
	d.UndefineNV(0x01c00016)
	// The answer that would have the certificate passed over, if it were whole.
	rsp, err := tpm2.CreatePrimary{PrimaryHandle: hierarchy(tpm2.TPMRHEndorsement), InPublic: tpm2.New2B(unlike())}.Execute(d)
	if err != nil {
		t.Fatal(err)
	}
	read, err := tpm2.ReadPublic{ObjectHandle: rsp.ObjectHandle}.Execute(d)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := (tpm2.FlushContext{FlushHandle: rsp.ObjectHandle}).Execute(d); err != nil {
		t.Fatal(err)
	}
	sized := func(b []byte) []byte { return append(binary.BigEndian.AppendUint16(nil, uint16(len(b))), b...) }
	public, name, qualified := read.OutPublic.Bytes(), sized(read.Name.Buffer), sized(read.QualifiedName.Buffer)
	for claim, tt := range map[string]struct {
		answer []byte
		passed bool
	}{
		"whole":                            {response(sized(public), name, qualified), true},
		"cut off":                          {response(sized(public), name), false},
		"empty":                            {response(), false},
		"no key":                           {response(sized(nil), name, qualified), false},
		"half a key":                       {response(sized(public[:20]), name, qualified), false},
		"more than a key":                  {response(sized(append(bytes.Clone(public), 0)), name, qualified), false},
		"no qualified name":                {response(sized(public), name, sized(nil)), false},
		"the name as the qualified one":    {response(sized(public), name, name), false},
		"of another algorithm":             {response(sized(append([]byte{0xff, 0xff}, public[2:]...)), name, qualified), false},
		"of another algorithm for names":   {response(sized(append([]byte{0, 1, 0xff, 0xff}, public[4:]...)), name, qualified), false},
		"a length beyond the answer's end": {response([]byte{0xff, 0xff}, public), false},
		"a failure of the TPM":             {[]byte{0x80, 0x01, 0, 0, 0, 10, 0, 0, 0x01, 0x01}, false},
	} {
		dev := New(&answering{d, tpm2.TPMCCReadPublic, tt.answer})
		id, err := dev.Identify("test")
		if err != nil {
			t.Fatalf("%s: %v", claim, err)
		}
		if want := map[bool]string{true: "ECC P-256", false: "RSA-2048"}[tt.passed]; id.EK.Kind != want || id.EK.PassedOver != tt.passed {
			t.Errorf("%s: got %s, passed over %t", claim, id.EK.Kind, id.EK.PassedOver)
		}
		empty(t, d, dev)
	}
}

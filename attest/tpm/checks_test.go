package tpm

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-tpm/tpm2"

	"github.com/sealift/sealift/attest"
	"github.com/sealift/sealift/attest/tpm/pcrsig"
)

// Each check is met alone: a TPM would refuse most of these by itself, but not say why.
func TestEachCheckOfAWrappedKeyRefusesByItself(t *testing.T) {
	policy := random(32)
	dev := &TPM{tkPolicy: policy}
	public := func(change func(*tpm2.TPMTPublic)) []byte {
		p := sealTemplate(policy)
		change(&p)
		return tpm2.Marshal(p)
	}
	good := public(func(*tpm2.TPMTPublic) {})
	one := []byte{1}
	for claim, tt := range map[string]struct {
		w    attest.WrappedKey
		says string
	}{
		"a right one":                    {attest.WrappedKey{Public: good, Duplicate: one, Seed: one}, ""},
		"the largest parts":              {attest.WrappedKey{Public: good, Duplicate: make([]byte, maxWrappedDuplicate), Seed: make([]byte, maxWrappedSeed)}, ""},
		"no public area":                 {attest.WrappedKey{Duplicate: one, Seed: one}, "public area: got 0 bytes"},
		"no duplicate":                   {attest.WrappedKey{Public: good, Seed: one}, "duplicate: got 0 bytes"},
		"no seed":                        {attest.WrappedKey{Public: good, Duplicate: one}, "seed: got 0 bytes"},
		"a public area that is too long": {attest.WrappedKey{Public: make([]byte, maxWrappedPublic+1), Duplicate: one, Seed: one}, "public area: got 257 bytes"},
		"a duplicate that is too long":   {attest.WrappedKey{Public: good, Duplicate: make([]byte, maxWrappedDuplicate+1), Seed: one}, "duplicate: got 513 bytes"},
		"a seed that is too long":        {attest.WrappedKey{Public: good, Duplicate: one, Seed: make([]byte, maxWrappedSeed+1)}, "seed: got 257 bytes"},
		"a byte behind":                  {attest.WrappedKey{Public: append(bytes.Clone(good), 0), Duplicate: one, Seed: one}, "public area"},
		"a key of another type": {attest.WrappedKey{Duplicate: one, Seed: one, Public: public(func(p *tpm2.TPMTPublic) {
			p.Type = tpm2.TPMAlgECC
			p.Parameters, p.Unique = akTemplate("s").Parameters, akTemplate("s").Unique
		})}, "want a KEYEDHASH"},
		"another algorithm for names": {attest.WrappedKey{Duplicate: one, Seed: one, Public: public(func(p *tpm2.TPMTPublic) { p.NameAlg = tpm2.TPMAlgSHA384 })}, "want a KEYEDHASH"},
		"one that a password opens":   {attest.WrappedKey{Duplicate: one, Seed: one, Public: public(func(p *tpm2.TPMTPublic) { p.ObjectAttributes.UserWithAuth = true })}, "authorization value"},
		"no policy":                   {attest.WrappedKey{Duplicate: one, Seed: one, Public: public(func(p *tpm2.TPMTPublic) { p.AuthPolicy.Buffer = nil })}, "got the policy"},
		"another policy":              {attest.WrappedKey{Duplicate: one, Seed: one, Public: public(func(p *tpm2.TPMTPublic) { p.AuthPolicy.Buffer = random(32) })}, "got the policy"},
	} {
		if err := dev.checkWrapped(tt.w); (err == nil) != (tt.says == "") || err != nil && !strings.Contains(err.Error(), tt.says) {
			t.Errorf("%s: got %v, want %q", claim, err, tt.says)
		}
	}
	if _, err := dev.Unwrap(attest.WrappedKey{Public: good, Duplicate: one, Seed: one}); err == nil || !strings.Contains(err.Error(), "call Collect first") {
		t.Errorf("without a transport key: %v", err)
	}
}

func TestEachCheckOfADeviceHalfRefusesByItself(t *testing.T) {
	key, pub := signingKey(t)
	rsaKey, err := pcrsig.ParseKey(pub)
	if err != nil {
		t.Fatal(err)
	}
	policy, err := authorizePolicy(rsaKey)
	if err != nil {
		t.Fatal(err)
	}
	for claim, tt := range map[string]struct {
		change func(*tpm2.TPMTPublic)
		says   string
	}{
		"a right one":         {func(*tpm2.TPMTPublic) {}, ""},
		"no policy":           {func(p *tpm2.TPMTPublic) { p.AuthPolicy.Buffer = nil }, "sealed to the policy"},
		"another policy":      {func(p *tpm2.TPMTPublic) { p.AuthPolicy.Buffer = random(32) }, "sealed to the policy"},
		"for names another":   {func(p *tpm2.TPMTPublic) { p.NameAlg = tpm2.TPMAlgSHA384 }, "type or attributes"},
		"with a password":     {func(p *tpm2.TPMTPublic) { p.ObjectAttributes.UserWithAuth = true }, "type or attributes"},
		"watched for guesses": {func(p *tpm2.TPMTPublic) { p.ObjectAttributes.NoDA = false }, "type or attributes"},
		"from another TPM":    {func(p *tpm2.TPMTPublic) { p.ObjectAttributes.FixedTPM = false }, "type or attributes"},
		"of another type": {func(p *tpm2.TPMTPublic) {
			p.Type = tpm2.TPMAlgECC
			p.Parameters, p.Unique = akTemplate("s").Parameters, akTemplate("s").Unique
		}, "type or attributes"},
	} {
		p := sealTemplate(policy)
		tt.change(&p)
		d := &deviceHalf{public: tpm2.Marshal(p)}
		if err := d.check(rsaKey); (err == nil) != (tt.says == "") || err != nil && !strings.Contains(err.Error(), tt.says) {
			t.Errorf("%s: got %v, want %q", claim, err, tt.says)
		}
	}
	// What UnsealDeviceHalf refuses the TPM has not seen.
	planted := sealTemplate(random(32))
	s := &scripted{}
	blob := (&deviceHalf{public: tpm2.Marshal(planted), private: []byte{1}, srk: []byte{1}}).marshal()
	if _, err := New(s).UnsealDeviceHalf(blob, pub, signed(t, key, make([]byte, 32))); err == nil || s.asked > 0 {
		t.Errorf("got %v after %d commands", err, s.asked)
	}
}

func TestADeviceHalfIsBoundedToTheByte(t *testing.T) {
	with := func(n int) []byte {
		d := deviceHalf{public: []byte{1}, srk: []byte{2}}
		d.private = make([]byte, n-len(d.marshal()))
		return d.marshal()
	}
	for n, ok := range map[int]bool{maxDeviceHalf: true, maxDeviceHalf + 1: false} {
		if _, err := parseDeviceHalf(with(n)); (err == nil) != ok || err != nil && !strings.Contains(err.Error(), "at most") {
			t.Errorf("%d bytes: %v", n, err)
		}
	}
	fields := func(b ...byte) []byte { return append([]byte(deviceHalfMagic), b...) }
	for claim, tt := range map[string]struct {
		blob []byte
		says string
	}{
		"another magic":             {bytes.Replace(fields(0, 1, 1, 0, 1, 2, 0, 1, 3), []byte("half 1"), []byte("half 2"), 1), "version 1"},
		"no field":                  {fields(), "public area: cut off"},
		"half a length":             {fields(0), "public area: cut off"},
		"an empty field":            {fields(0, 0, 0, 1, 2, 0, 1, 3), "public area: got a length of 0"},
		"an empty field in the end": {fields(0, 1, 1, 0, 1, 2, 0, 0), "name: got a length of 0"},
		"a field a byte too long":   {fields(0, 1, 1, 0, 1, 2, 0, 2, 3), "name: got a length of 2, want 1 to 1"},
		"a byte behind":             {fields(0, 1, 1, 0, 1, 2, 0, 1, 3, 4), "1 bytes after its end"},
	} {
		if d, err := parseDeviceHalf(tt.blob); err == nil || d != nil || !strings.Contains(err.Error(), tt.says) {
			t.Errorf("%s: got %v, want %q", claim, err, tt.says)
		}
	}
}

func TestASignatureIsChosenForBankKeyAndState(t *testing.T) {
	key, _ := signingKey(t)
	pcr11 := random(32)
	right, err := pcrsig.Parse(signed(t, key, pcr11))
	if err != nil || len(right) != 1 {
		t.Fatal(err)
	}
	for claim, change := range map[string]func(*pcrsig.Entry){
		"bank":  func(e *pcrsig.Entry) { e.Bank = "sha384" },
		"state": func(e *pcrsig.Entry) { e.Policy[0] ^= 1 },
		"key":   func(e *pcrsig.Entry) { e.KeyID[0] ^= 1 },
	} {
		other := right[0]
		change(&other)
		if _, err := choose([]pcrsig.Entry{other}, &key.PublicKey, "sha256", pcr11); err == nil || !strings.Contains(err.Error(), "none of 1 signatures") {
			t.Errorf("another %s: %v", claim, err)
		}
		if e, err := choose([]pcrsig.Entry{other, right[0]}, &key.PublicKey, "sha256", pcr11); err != nil || e.Policy != right[0].Policy || e.Bank != "sha256" {
			t.Errorf("another %s before the right one: %+v, %v", claim, e, err)
		}
	}
	forged := right[0]
	forged.Signature = random(256)
	if _, err := choose([]pcrsig.Entry{forged}, &key.PublicKey, "sha256", pcr11); err == nil {
		t.Error("a forged signature is chosen")
	}
}

// pcrValues is TPM2_PCR_Read's answer: selections of banks, and values.
func pcrValues(selections []tpm2.TPMSPCRSelection, values ...[]byte) []byte {
	l := tpm2.TPMLDigest{}
	for _, v := range values {
		l.Digests = append(l.Digests, tpm2.TPM2BDigest{Buffer: v})
	}
	return response(make([]byte, 4), tpm2.Marshal(tpm2.TPMLPCRSelection{PCRSelections: selections}), tpm2.Marshal(l))
}

func selectionOf(alg tpm2.TPMAlgID, pcrs ...uint) []tpm2.TPMSPCRSelection {
	return []tpm2.TPMSPCRSelection{{Hash: alg, PCRSelect: tpm2.PCClientCompatible.PCRs(pcrs...)}}
}

func TestPCRValuesAreThoseThatWereAskedFor(t *testing.T) {
	b, err := bankNamed("sha256")
	if err != nil {
		t.Fatal(err)
	}
	v4, v7 := random(32), random(32)
	for claim, tt := range map[string]struct {
		answers [][]byte
		says    string
	}{
		"at once":                         {[][]byte{pcrValues(selectionOf(tpm2.TPMAlgSHA256, 4, 7), v4, v7)}, ""},
		"in two parts":                    {[][]byte{pcrValues(selectionOf(tpm2.TPMAlgSHA256, 7), v7), pcrValues(selectionOf(tpm2.TPMAlgSHA256, 4), v4)}, ""},
		"none":                            {[][]byte{pcrValues(selectionOf(tpm2.TPMAlgSHA256))}, "incomplete"},
		"none that is selected":           {[][]byte{pcrValues(selectionOf(tpm2.TPMAlgSHA256), v4, v7)}, "incomplete"},
		"fewer than selected":             {[][]byte{pcrValues(selectionOf(tpm2.TPMAlgSHA256, 4, 7), v4)}, "incomplete"},
		"more than selected":              {[][]byte{pcrValues(selectionOf(tpm2.TPMAlgSHA256, 4), v4, v7)}, "incomplete"},
		"of another bank":                 {[][]byte{pcrValues(selectionOf(tpm2.TPMAlgSHA384, 4, 7), v4, v7)}, "incomplete"},
		"of a PCR that was not asked for": {[][]byte{pcrValues(selectionOf(tpm2.TPMAlgSHA256, 4, 8), v4, v7)}, "got PCR 8"},
		"one again":                       {[][]byte{pcrValues(selectionOf(tpm2.TPMAlgSHA256, 4), v4)}, "got PCR 4, which was not asked for"},
		"a short one":                     {[][]byte{pcrValues(selectionOf(tpm2.TPMAlgSHA256, 4, 7), v4, v7[:31])}, "got 31 bytes, want 32"},
		"an empty one":                    {[][]byte{pcrValues(selectionOf(tpm2.TPMAlgSHA256, 4, 7), v4, nil)}, "got 0 bytes, want 32"},
		"a long one":                      {[][]byte{pcrValues(selectionOf(tpm2.TPMAlgSHA256, 4, 7), v4, random(48))}, "got 48 bytes, want 32"},
	} {
		got, err := New(&scripted{responses: tt.answers}).readPCRs(b, []int{4, 7})
		if tt.says == "" {
			if err != nil || !maps.EqualFunc(got, map[int][]byte{4: v4, 7: v7}, bytes.Equal) {
				t.Errorf("%s: got %x, %v", claim, got, err)
			}
		} else if err == nil || got != nil || !strings.Contains(err.Error(), tt.says) {
			t.Errorf("%s: got %x, %v; want %q", claim, got, err, tt.says)
		}
	}
	for _, index := range []int{-1, 24} {
		s := &scripted{}
		if _, err := New(s).ReadPCR("sha256", index); err == nil || s.asked > 0 || !strings.Contains(err.Error(), "want 0 to 23") {
			t.Errorf("PCR %d: %v after %d commands", index, err, s.asked)
		}
	}
}

func TestActiveBanksAreThoseWithAnyPCR(t *testing.T) {
	list := func(banks ...tpm2.TPMSPCRSelection) []byte {
		b := binary.BigEndian.AppendUint32([]byte{0}, uint32(tpm2.TPMCapPCRs))
		return response(b, tpm2.Marshal(tpm2.TPMLPCRSelection{PCRSelections: banks}))
	}
	bits := func(alg tpm2.TPMAlgID, b ...byte) tpm2.TPMSPCRSelection {
		return tpm2.TPMSPCRSelection{Hash: alg, PCRSelect: b}
	}
	const sm3 = tpm2.TPMAlgID(0x0012)
	for claim, tt := range map[string]struct {
		answer []byte
		banks  []string
		main   string
		says   string
	}{
		"all PCRs":                       {list(bits(tpm2.TPMAlgSHA1, 0xff, 0xff, 0xff), bits(tpm2.TPMAlgSHA256, 0xff, 0xff, 0xff)), []string{"sha1", "sha256"}, "sha256", ""},
		"one PCR":                        {list(bits(tpm2.TPMAlgSHA256, 0, 0, 1)), []string{"sha256"}, "sha256", ""},
		"none of a bank":                 {list(bits(tpm2.TPMAlgSHA256, 0, 0, 0), bits(tpm2.TPMAlgSHA384, 1)), []string{"sha384"}, "sha384", ""},
		"SHA-256 after SHA-384":          {list(bits(tpm2.TPMAlgSHA384, 1), bits(tpm2.TPMAlgSHA256, 1)), []string{"sha384", "sha256"}, "sha256", ""},
		"SHA-1 alone":                    {list(bits(tpm2.TPMAlgSHA1, 1)), []string{"sha1"}, "", ""},
		"SHA-512 alone":                  {list(bits(tpm2.TPMAlgSHA512, 1)), []string{"sha512"}, "", ""},
		"none of any bank":               {list(bits(tpm2.TPMAlgSHA256, 0, 0, 0)), nil, "", "no pcr bank is active"},
		"no bank":                        {list(), nil, "", "no pcr bank is active"},
		"one that is not known":          {list(bits(tpm2.TPMAlgSHA256, 1), bits(sm3, 1)), nil, "", "0x12"},
		"one that is not known, and off": {list(bits(sm3, 0, 0, 0), bits(tpm2.TPMAlgSHA256, 1)), []string{"sha256"}, "sha256", ""},
		"another capability":             {handles(0, 1), nil, "", "list pcr banks"},
	} {
		banks, err := New(&scripted{responses: [][]byte{tt.answer}}).activeBanks()
		var names []string
		for _, b := range banks {
			names = append(names, b.name)
		}
		if !slices.Equal(names, tt.banks) || (err == nil) != (tt.says == "") || err != nil && !strings.Contains(err.Error(), tt.says) {
			t.Errorf("%s: got %q, %v", claim, names, err)
		}
		if err != nil {
			continue
		}
		if b, err := mainBank(banks); b.name != tt.main || (err == nil) != (tt.main != "") {
			t.Errorf("%s: the main bank is %q, %v", claim, b.name, err)
		}
	}
}

// An error of the TPM's is told with what can be done about it.
func TestErrorsOfATPMSayWhatToDo(t *testing.T) {
	for rc, says := range map[tpm2.TPMRC]string{
		tpm2.TPMRCAuthFail:  "clear the TPM",
		tpm2.TPMRCBadAuth:   "clear the TPM",
		tpm2.TPMRCHierarchy: "the hierarchy is disabled",
		tpm2.TPMRCLockout:   "too many wrong authorizations",
		tpm2.TPMRCFailure:   "",
	} {
		if got := hint(fmt.Errorf("do: %w", rc)).Error(); !strings.Contains(got, says) || says == "" && got != "do: "+rc.Error() {
			t.Errorf("%v: %s", rc, got)
		}
	}
}

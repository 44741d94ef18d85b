package attest_test

import (
	"bytes"
	"crypto"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"math/big"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-tpm/tpm2"

	. "github.com/sealift/sealift/attest"
	"github.com/sealift/sealift/attest/papertpm"
)

// tpmName encodes a subject alternative name with a TPM's name: a set for each
// element of rdns, with its attributes in the order given.
func tpmName(t testing.TB, rdns ...[]tpmAttribute) []byte {
	t.Helper()
	var name []byte
	for _, rdn := range rdns {
		var set []byte
		for _, a := range rdn {
			b, err := asn1.Marshal(struct {
				Type  asn1.ObjectIdentifier
				Value asn1.RawValue
			}{asn1.ObjectIdentifier{2, 23, 133, 2, a.n}, asn1.RawValue{Tag: asn1.TagUTF8String, Bytes: []byte(a.value)}})
			if err != nil {
				t.Fatal(err)
			}
			set = append(set, b...)
		}
		name = append(name, mustASN1(t, asn1.RawValue{Tag: asn1.TagSet, IsCompound: true, Bytes: set})...)
	}
	name = mustASN1(t, asn1.RawValue{Tag: asn1.TagSequence, IsCompound: true, Bytes: name})
	directory := mustASN1(t, asn1.RawValue{Class: asn1.ClassContextSpecific, Tag: 4, IsCompound: true, Bytes: name})
	return mustASN1(t, asn1.RawValue{Tag: asn1.TagSequence, IsCompound: true, Bytes: directory})
}

type tpmAttribute struct {
	n     int
	value string
}

func mustASN1(t testing.TB, v any) []byte {
	t.Helper()
	b, err := asn1.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func withSAN(san []byte) func(*x509.Certificate) {
	return func(c *x509.Certificate) {
		c.ExtraExtensions = []pkix.Extension{{Id: asn1.ObjectIdentifier{2, 5, 29, 17}, Critical: true, Value: san}}
	}
}

func TestTheTPMIsReadFromTheSubjectAlternativeName(t *testing.T) {
	ca := newCA(t)
	key := newKey(t, elliptic.P256())
	manufacturer, model, version := tpmAttribute{1, "id:49465800"}, tpmAttribute{2, "SLB9672"}, tpmAttribute{3, "id:000F0016"}
	infineon := TPMModel{Vendor: 0x49465800, Model: "SLB9672", Version: "id:000F0016"}
	for name, c := range map[string]struct {
		san    []byte
		want   TPMModel
		quirks []string
		says   string // of the refusal
	}{
		"one attribute in each set":           {san: tpmName(t, []tpmAttribute{manufacturer}, []tpmAttribute{model}, []tpmAttribute{version}), want: infineon},
		"all in one set, in DER order":        {san: tpmName(t, []tpmAttribute{model, manufacturer, version}), want: infineon},
		"all in one set, in another order":    {san: tpmName(t, []tpmAttribute{version, manufacturer, model}), want: infineon, quirks: []string{QuirkSetOrder}},
		"lower-case digits":                   {san: tpmName(t, []tpmAttribute{{1, "id:414d4400"}}), want: TPMModel{Vendor: 0x414d4400}},
		"the manufacturer as text":            {san: tpmName(t, []tpmAttribute{{1, "NTC"}}), want: TPMModel{Vendor: 0x4e544300}},
		"no TPM's name":                       {san: tpmName(t), want: TPMModel{}},
		"two manufacturers":                   {san: tpmName(t, []tpmAttribute{manufacturer}, []tpmAttribute{{1, "id:414D4400"}}), says: "twice"},
		"a manufacturer that is no id":        {san: tpmName(t, []tpmAttribute{{1, "Infineon Technologies"}}), says: "letters and digits"},
		"a manufacturer of too many digits":   {san: tpmName(t, []tpmAttribute{{1, "id:4946580000"}}), says: "eight hex digits"},
		"bytes after the name":                {san: append(tpmName(t, []tpmAttribute{manufacturer}), 0), says: "1 bytes after it"},
		"an attribute that is cut off":        {san: mustASN1(t, []asn1.RawValue{{Class: asn1.ClassContextSpecific, Tag: 4, IsCompound: true, Bytes: []byte{0x30, 4, 0x31, 2, 0x30, 9}}}), says: "subject alternative name"},
		"a set with something that is no set": {san: mustASN1(t, []asn1.RawValue{{Class: asn1.ClassContextSpecific, Tag: 4, IsCompound: true, Bytes: []byte{0x30, 2, 0x02, 0}}}), says: "subject alternative name"},
	} {
		t.Run(name, func(t *testing.T) {
			cert, err := ca.Certify(key.Public(), withSAN(c.san))
			if err != nil {
				// What crypto/x509 refuses to read is not trusted either.
				if c.says == "" {
					t.Fatal(err)
				}
				return
			}
			policy := &TPMPolicy{Roots: []TPMRoot{{Class: TPMHardware, Certificate: ca.Root}}, Allowed: []TPMClass{TPMHardware}}
			ek, findings := VerifyEK(tpm2.Marshal(ekArea(t, key.Public())), [][]byte{cert.Raw}, policy, now)
			if c.says != "" {
				if len(findings) != 1 || findings[0].Code != CodeEKCertificate || !strings.Contains(findings[0].Message, c.says) {
					t.Fatalf("got %+v, want ek.untrusted that says %q", findings, c.says)
				}
				return
			}
			if findings != nil {
				t.Fatalf("refused: %+v", findings)
			}
			if ek.Model() != c.want || !slices.Equal(ek.Quirks(), c.quirks) {
				t.Errorf("got %+v with quirks %q, want %+v with %q", ek.Model(), ek.Quirks(), c.want, c.quirks)
			}
		})
	}
}

func TestVendorIDsAreReadAndWritten(t *testing.T) {
	for text, want := range map[string]TPMVendor{
		"IFX": 0x49465800, "STM": 0x53544d00, "INTC": 0x494e5443, "AMD": 0x414d4400, "id:00001014": 0x1014, "id:00000000": 0,
	} {
		v, err := ParseTPMVendor(text)
		if err != nil || v != want || v.String() != text {
			t.Errorf("%q: got %#x, written %q, %v", text, uint32(v), v, err)
		}
	}
	// However it is padded, a rule of a policy is of the same makers.
	for _, text := range []string{"STM ", "id:53544D20", "id:53544d00"} {
		if v, err := ParseTPMVendor(text); err != nil || v.String() != "STM" {
			t.Errorf("%q: got %q, %v", text, v, err)
		}
	}
	for _, text := range []string{"", "INTEL", "id:", "id:12", "id:1234567g", "a\x00b", "ü"} {
		if v, err := ParseTPMVendor(text); err == nil {
			t.Errorf("%q was read as %#x", text, uint32(v))
		}
	}
}

// authorities is a root and an issuer below it, with revocation lists.
type authorities struct {
	t            *testing.T
	root, issuer *papertpm.CA
}

func newAuthorities(t *testing.T) *authorities {
	t.Helper()
	a := &authorities{t: t, root: newCA(t), issuer: newCA(t)}
	usage := x509.KeyUsageCertSign | x509.KeyUsageCRLSign
	var err error
	if a.root.Root, err = a.root.Sign(&x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "Root"}, IsCA: true, BasicConstraintsValid: true, KeyUsage: usage, SubjectKeyId: []byte{1}}, nil, a.root.Key.Public()); err != nil {
		t.Fatal(err)
	}
	if a.issuer.Root, err = a.root.Sign(&x509.Certificate{SerialNumber: big.NewInt(3), Subject: pkix.Name{CommonName: "Issuer"}, IsCA: true, BasicConstraintsValid: true, KeyUsage: usage, SubjectKeyId: []byte{2}}, a.root.Root, a.issuer.Key.Public()); err != nil {
		t.Fatal(err)
	}
	return a
}

func (a *authorities) roots() []TPMRoot {
	return []TPMRoot{{Class: TPMHardware, Certificate: a.root.Root}, {Certificate: a.issuer.Root, Intermediate: true}}
}

// list signs a revocation list.
func (a *authorities) list(by *papertpm.CA, change func(*x509.RevocationList), serials ...int64) []byte {
	a.t.Helper()
	l := &x509.RevocationList{Number: big.NewInt(5), ThisUpdate: now.Add(-time.Minute), NextUpdate: now.Add(time.Minute)}
	for _, n := range serials {
		l.RevokedCertificateEntries = append(l.RevokedCertificateEntries, x509.RevocationListEntry{SerialNumber: big.NewInt(n), RevocationTime: now.Add(-time.Minute)})
	}
	if change != nil {
		change(l)
	}
	der, err := x509.CreateRevocationList(rand.Reader, l, by.Root, by.Key)
	if err != nil {
		a.t.Fatal(err)
	}
	return der
}

func TestRevocationListsDecide(t *testing.T) {
	a := newAuthorities(t)
	key := newKey(t, elliptic.P256())
	public, leaf := tpm2.Marshal(ekArea(t, key.Public())), certify(t, a.issuer, key.Public(), nil) // serial number 2
	expired := func(l *x509.RevocationList) { l.ThisUpdate, l.NextUpdate = now.Add(-2*time.Hour), now.Add(-time.Hour) }
	early := func(l *x509.RevocationList) { l.ThisUpdate = now.Add(time.Second) }
	rootList, issuerList := a.list(a.root, nil), a.list(a.issuer, nil)
	cases := map[string]struct {
		lists    [][]byte
		required bool
		want     Code
		says     string
	}{
		"without lists":                      {},
		"with lists on which it is not":      {lists: [][]byte{rootList, issuerList}, required: true},
		"revoked":                            {lists: [][]byte{a.list(a.issuer, nil, 7, 2)}, want: CodeEKRevoked, says: "list 5"},
		"revoked by a list that has run out": {lists: [][]byte{a.list(a.issuer, expired, 2), issuerList}, want: CodeEKRevoked},
		"its issuer revoked":                 {lists: [][]byte{a.list(a.root, nil, 3)}, want: CodeEKRevoked, says: "CN=Issuer"},
		"the serial number of another's":     {lists: [][]byte{a.list(a.root, nil, 2)}},
		"no list where one is required":      {required: true, want: CodeEKRevocation, says: `"CN=Issuer"`},
		"no list of the root":                {lists: [][]byte{issuerList}, required: true, want: CodeEKRevocation, says: `"CN=Root"`},
		"a list that has run out":            {lists: [][]byte{rootList, a.list(a.issuer, expired)}, required: true, want: CodeEKRevocation},
		"a list of the future":               {lists: [][]byte{rootList, a.list(a.issuer, early)}, required: true, want: CodeEKRevocation},
		"an older list beside the newest":    {lists: [][]byte{rootList, a.list(a.issuer, expired), issuerList}, required: true},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			r, err := NewRevocations(c.lists, a.roots())
			if err != nil {
				t.Fatal(err)
			}
			policy := &TPMPolicy{Roots: a.roots(), Allowed: []TPMClass{TPMHardware}, Revocations: r, RequireRevocation: c.required}
			ek, findings := VerifyEK(public, [][]byte{leaf.Raw}, policy, now)
			switch {
			case c.want == "":
				if ek == nil {
					t.Errorf("refused: %+v", findings)
				}
			case len(findings) != 1 || findings[0].Code != c.want || !strings.Contains(findings[0].Message, c.says):
				t.Errorf("got %+v, want %s that says %q", findings, c.want, c.says)
			}
		})
	}
}

// An authority that bears the name of another, with a key of its own, gives nothing
// to, and takes nothing from, the other's word.
func TestARootOfTheSameNameIsAnother(t *testing.T) {
	ca, namesake := newCA(t), newCA(t)
	if !bytes.Equal(ca.Root.RawSubject, namesake.Root.RawSubject) {
		t.Fatal("the two authorities have different names")
	}
	key := newKey(t, elliptic.P256())
	policy := &TPMPolicy{
		Roots:   []TPMRoot{{Class: TPMHardware, Certificate: ca.Root}, {Class: TPMSoftware, Certificate: namesake.Root}},
		Allowed: []TPMClass{TPMHardware, TPMSoftware},
	}
	for want, by := range map[TPMClass]*papertpm.CA{TPMHardware: ca, TPMSoftware: namesake} {
		ek, findings := VerifyEK(tpm2.Marshal(ekArea(t, key.Public())), [][]byte{certify(t, by, key.Public(), nil).Raw}, policy, now)
		if ek == nil || ek.Class() != want {
			t.Errorf("got %+v, %+v, want the class %s", ek, findings, want)
		}
	}
}

func TestRevocationListsThatDoNotCountAreErrors(t *testing.T) {
	a := newAuthorities(t)
	foreign := newAuthorities(t)
	critical := func(id ...int) func(*x509.RevocationList) {
		return func(l *x509.RevocationList) {
			l.ExtraExtensions = []pkix.Extension{{Id: id, Critical: true, Value: []byte{0x30, 0}}}
		}
	}
	damaged := a.list(a.issuer, nil, 2)
	damaged[len(damaged)-1] ^= 1
	for name, c := range map[string]struct {
		list []byte
		says string
	}{
		"of an authority that is not trusted": {foreign.list(&papertpm.CA{Root: foreign.other(), Key: foreign.root.Key}, nil), "none of the trusted"},
		"signed by another of the same name":  {foreign.list(foreign.issuer, nil), "verification"},
		"damaged":                             {damaged, "verification"},
		"a delta list":                        {a.list(a.issuer, critical(2, 5, 29, 27)), "2.5.29.27"},
		"a partitioned list":                  {a.list(a.issuer, critical(2, 5, 29, 28)), "2.5.29.28"},
		"a list of others' certificates": {a.list(a.issuer, func(l *x509.RevocationList) {
			l.RevokedCertificateEntries[0].ExtraExtensions = []pkix.Extension{{Id: asn1.ObjectIdentifier{2, 5, 29, 29}, Critical: true, Value: []byte{0x30, 0}}}
		}, 2), "2.5.29.29"},
		"no list":   {[]byte("list"), "malformed"},
		"too large": {make([]byte, MaxRevocationList+1), "at most"},
	} {
		if _, err := NewRevocations([][]byte{c.list}, a.roots()); err == nil || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: got %v, want an error that says %q", name, err, c.says)
		}
	}
}

// other returns a certificate of the root's key under another name.
func (a *authorities) other() *x509.Certificate {
	a.t.Helper()
	c, err := a.root.Sign(&x509.Certificate{SerialNumber: big.NewInt(9), Subject: pkix.Name{CommonName: "Other"}, IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign, SubjectKeyId: []byte{3}}, nil, a.root.Key.Public())
	if err != nil {
		a.t.Fatal(err)
	}
	return c
}

func TestARootVouchesForItsVendorsOnly(t *testing.T) {
	ca := newCA(t)
	key := newKey(t, elliptic.P256())
	public := tpm2.Marshal(ekArea(t, key.Public()))
	paper := certify(t, ca, key.Public(), nil) // PAPR
	unnamed := certify(t, ca, key.Public(), withSAN(tpmName(t)))
	without := certify(t, ca, key.Public(), func(c *x509.Certificate) { c.ExtraExtensions = nil })
	vendors := func(names ...string) []TPMVendor {
		var out []TPMVendor
		for _, n := range names {
			v, err := ParseTPMVendor(n)
			if err != nil {
				t.Fatal(err)
			}
			out = append(out, v)
		}
		return out
	}
	for name, c := range map[string]struct {
		cert  *x509.Certificate
		roots []TPMRoot
		class TPMClass // "" if refused
	}{
		"its own":                         {paper, []TPMRoot{{Class: TPMHardware, Vendors: vendors("IFX", "PAPR")}}, TPMHardware},
		"any":                             {paper, []TPMRoot{{Class: TPMHardware}}, TPMHardware},
		"another's":                       {paper, []TPMRoot{{Class: TPMHardware, Vendors: vendors("IFX")}}, ""},
		"no name":                         {unnamed, []TPMRoot{{Class: TPMHardware, Vendors: vendors("IFX")}}, ""},
		"no subject alternative name":     {without, []TPMRoot{{Class: TPMHardware, Vendors: vendors("IFX")}}, ""},
		"no name, and any vendor":         {without, []TPMRoot{{Class: TPMHardware}}, TPMHardware},
		"another class for each vendor":   {paper, []TPMRoot{{Class: TPMSoftware, Vendors: vendors("IFX")}, {Class: TPMHardware, Vendors: vendors("PAPR")}}, TPMHardware},
		"the least of those that vouch":   {paper, []TPMRoot{{Class: TPMSoftware, Vendors: vendors("PAPR")}, {Class: TPMHardware}}, TPMSoftware},
		"the least, in another order":     {paper, []TPMRoot{{Class: TPMHardware}, {Class: TPMSoftware, Vendors: vendors("PAPR")}}, TPMSoftware},
		"the vendors of an intermediate ": {paper, []TPMRoot{{Class: TPMHardware}, {Intermediate: true, Vendors: vendors("IFX")}}, TPMHardware},
	} {
		t.Run(name, func(t *testing.T) {
			for i := range c.roots {
				c.roots[i].Certificate = ca.Root
			}
			policy := &TPMPolicy{Roots: c.roots, Allowed: []TPMClass{TPMHardware, TPMSoftware}}
			ek, findings := VerifyEK(public, [][]byte{c.cert.Raw}, policy, now)
			switch {
			case c.class == "" && (len(findings) != 1 || findings[0].Code != CodeTPMVendor || findings[0].Hint == ""):
				t.Errorf("got %+v, want %s", findings, CodeTPMVendor)
			case c.class != "" && (ek == nil || ek.Class() != c.class):
				t.Errorf("got %+v, %+v, want the class %s", ek, findings, c.class)
			}
		})
	}
}

func TestExpiredCertificatesAreForThePolicyToAllow(t *testing.T) {
	a := newAuthorities(t)
	key := newKey(t, elliptic.P256())
	public := tpm2.Marshal(ekArea(t, key.Public()))
	old := certify(t, a.issuer, key.Public(), func(c *x509.Certificate) { c.NotBefore, c.NotAfter = now.Add(-time.Hour), now.Add(-time.Minute) })
	future := certify(t, a.issuer, key.Public(), func(c *x509.Certificate) { c.NotBefore, c.NotAfter = now.Add(time.Minute), now.Add(time.Hour) })
	for name, c := range map[string]struct {
		cert    *x509.Certificate
		allowed bool
		now     time.Time
		want    Code
	}{
		"not by default":                   {old, false, now, CodeEKExpired},
		"if the policy says so":            {old, true, now, ""},
		"not with authorities that are so": {old, true, now.Add(2 * time.Hour), CodeEKCertificate},
		"not one that is not yet valid":    {future, true, now, CodeEKCertificate},
	} {
		policy := &TPMPolicy{Roots: a.roots(), Allowed: []TPMClass{TPMHardware}, AllowExpired: c.allowed}
		ek, findings := VerifyEK(public, [][]byte{c.cert.Raw}, policy, c.now)
		if c.want == "" && ek == nil || c.want != "" && (len(findings) != 1 || findings[0].Code != c.want) {
			t.Errorf("%s: got %+v, want %q", name, findings, c.want)
		}
		if ek != nil && !ek.Certificate().NotAfter.Equal(c.cert.NotAfter) {
			t.Errorf("%s: the certificate that is returned was altered", name)
		}
	}
}

func TestImportedCertificatesStandInForThoseThatAreMissing(t *testing.T) {
	a := newAuthorities(t)
	key, other := newKey(t, elliptic.P256()), newKey(t, elliptic.P256())
	public := tpm2.Marshal(ekArea(t, key.Public()))
	own := certify(t, a.issuer, key.Public(), nil)
	foreign := certify(t, newCA(t), key.Public(), nil)
	revoked, err := NewRevocations([][]byte{a.list(a.issuer, nil, 2)}, a.roots())
	if err != nil {
		t.Fatal(err)
	}
	old := certify(t, a.issuer, key.Public(), func(c *x509.Certificate) {
		c.SerialNumber = big.NewInt(44)
		c.NotBefore, c.NotAfter = now.Add(-time.Hour), now.Add(-time.Minute)
	})
	policy := func() *TPMPolicy {
		id, err := EKCertificateMachine(own)
		if err != nil {
			t.Fatal(err)
		}
		return &TPMPolicy{Roots: a.roots(), Allowed: []TPMClass{TPMHardware}, Imported: map[MachineID]*x509.Certificate{id: own}}
	}
	for name, c := range map[string]struct {
		public   []byte
		sent     [][]byte
		change   func(*TPMPolicy)
		imported bool
		want     Code
	}{
		"where the machine sends none":        {sent: nil, imported: true},
		"where it sends one of nobody":        {sent: [][]byte{foreign.Raw}, imported: true},
		"where it sends one of another key":   {sent: [][]byte{certify(t, a.issuer, other.Public(), nil).Raw}, imported: true},
		"where it sends junk":                 {sent: [][]byte{[]byte("junk")}, imported: true},
		"where its own has expired":           {sent: [][]byte{old.Raw}, imported: true},
		"with the issuer that it sends":       {sent: [][]byte{a.issuer.Root.Raw}, change: func(p *TPMPolicy) { p.Roots = p.Roots[:1] }, imported: true},
		"not where its own is good":           {sent: [][]byte{own.Raw}},
		"not for another machine":             {public: tpm2.Marshal(ekArea(t, other.Public())), want: CodeEKCertificate},
		"not against a revocation":            {sent: [][]byte{own.Raw}, change: func(p *TPMPolicy) { p.Revocations = revoked }, want: CodeEKRevoked},
		"not revoked themselves":              {sent: nil, change: func(p *TPMPolicy) { p.Revocations = revoked }, want: CodeEKRevoked},
		"not without a root":                  {sent: nil, change: func(p *TPMPolicy) { p.Roots = p.Roots[1:] }, want: CodeEKCertificate},
		"not of a class that is not allowed":  {sent: nil, change: func(p *TPMPolicy) { p.Allowed = []TPMClass{TPMSoftware} }, want: CodeTPMClass},
		"not where they are filed wrongly":    {public: tpm2.Marshal(ekArea(t, other.Public())), change: func(p *TPMPolicy) { p.Imported = misfiled(t, p, other.Public()) }, want: CodeEKMismatch},
		"not where nothing has been imported": {change: func(p *TPMPolicy) { p.Imported = nil }, want: CodeEKCertificate},
	} {
		t.Run(name, func(t *testing.T) {
			p := policy()
			if c.change != nil {
				c.change(p)
			}
			if c.public == nil {
				c.public = public
			}
			ek, findings := VerifyEK(c.public, c.sent, p, now)
			switch {
			case c.want != "":
				if len(findings) != 1 || findings[0].Code != c.want {
					t.Errorf("got %+v, want %s", findings, c.want)
				}
			case ek == nil:
				t.Errorf("refused: %+v", findings)
			case ek.Imported() != c.imported:
				t.Errorf("imported is %t, want %t", ek.Imported(), c.imported)
			}
		})
	}
}

func misfiled(t *testing.T, p *TPMPolicy, key any) map[MachineID]*x509.Certificate {
	spki, err := x509.MarshalPKIXPublicKey(key)
	if err != nil {
		t.Fatal(err)
	}
	out := map[MachineID]*x509.Certificate{}
	for _, c := range p.Imported {
		out[MachineIDOf(spki)] = c
	}
	return out
}

func TestWeakKeysHaveTheirOwnFinding(t *testing.T) {
	ca := newCA(t)
	key := rocaKey(t)
	policy := &TPMPolicy{Roots: []TPMRoot{{Class: TPMHardware, Certificate: ca.Root}}, Allowed: []TPMClass{TPMHardware}}
	_, findings := VerifyEK(tpm2.Marshal(ekArea(t, key)), [][]byte{certify(t, ca, key, nil).Raw}, policy, now)
	if len(findings) != 1 || findings[0].Code != CodeEKWeak {
		t.Errorf("got %+v", findings)
	}
}

func TestTPMFirmwareIsDenied(t *testing.T) {
	const firmware = 0x2019102300163636 // of the paper TPM
	paper, err := ParseTPMVendor("PAPR")
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		denial TPMDenial
		want   bool
	}{
		"this version":                  {TPMDenial{Vendor: paper, From: firmware, To: firmware}, true},
		"a range":                       {TPMDenial{Vendor: paper, From: 1, To: firmware + 1}, true},
		"all of the vendor's":           {TPMDenial{Vendor: paper}, true},
		"from a later one":              {TPMDenial{Vendor: paper, From: firmware + 1}, false},
		"up to an earlier one":          {TPMDenial{Vendor: paper, To: firmware - 1}, false},
		"of another vendor":             {TPMDenial{Vendor: paper + 1}, false},
		"of another model":              {TPMDenial{Vendor: paper, Model: "other"}, false},
		"of a TPM that names no vendor": {TPMDenial{Vendor: 0}, false},
	} {
		s := newScene(t)
		c.denial.Reason = "CVE-2017-15361"
		s.policy.TPM.Denied = []TPMDenial{{Vendor: 1}, c.denial}
		s.collect()
		r := s.verify()
		if got := slices.Equal(codesOf(r), []Code{CodeTPMDenied}); got != c.want || !got && !r.Allowed {
			t.Errorf("%s: findings %+v, denied should be %t", name, r.Findings, c.want)
		}
		if c.want && !strings.Contains(r.Findings[0].Message, "CVE-2017-15361") {
			t.Errorf("%s: message is %s", name, r.Findings[0].Message)
		}
	}
	s := newScene(t)
	s.tpm.EKCertificates = [][]byte{certify(t, s.ca, s.tpm.EK.(crypto.Signer).Public(), withSAN(tpmName(t))).Raw}
	s.policy.TPM.Denied = []TPMDenial{{Vendor: 1}}
	s.collect()
	if got := codesOf(s.verify()); !slices.Equal(got, []Code{CodeTPMDenied}) {
		t.Errorf("a TPM that names no vendor, where some are denied: codes are %q", got)
	}
}

func TestRSA3072EndorsementKeysAreVerified(t *testing.T) {
	ca := newCA(t)
	key, err := rsa.GenerateKey(rand.Reader, 3072)
	if err != nil {
		t.Fatal(err)
	}
	p := tpm2.RSAEKTemplate
	p.NameAlg = tpm2.TPMAlgSHA384
	p.ObjectAttributes.UserWithAuth = true
	p.Parameters = tpm2.NewTPMUPublicParms(tpm2.TPMAlgRSA, &tpm2.TPMSRSAParms{KeyBits: 3072, Symmetric: tpm2.TPMTSymDefObject{
		Algorithm: tpm2.TPMAlgAES, KeyBits: tpm2.NewTPMUSymKeyBits(tpm2.TPMAlgAES, tpm2.TPMKeyBits(256)), Mode: tpm2.NewTPMUSymMode(tpm2.TPMAlgAES, tpm2.TPMAlgCFB),
	}})
	p.Unique = tpm2.NewTPMUPublicID(tpm2.TPMAlgRSA, &tpm2.TPM2BPublicKeyRSA{Buffer: key.N.Bytes()})
	policy := &TPMPolicy{Roots: []TPMRoot{{Class: TPMHardware, Certificate: ca.Root}}, Allowed: []TPMClass{TPMHardware}}
	if _, findings := VerifyEK(tpm2.Marshal(p), [][]byte{certify(t, ca, key.Public(), nil).Raw}, policy, now); findings != nil {
		t.Errorf("refused: %+v", findings)
	}
	p.NameAlg = tpm2.TPMAlgSHA256
	if _, err := EKMachineID(tpm2.Marshal(p)); err == nil {
		t.Error("accepted with the name algorithm of a 2048-bit key")
	}
}

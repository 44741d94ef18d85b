package attest

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/binary"
	"math/big"
	"testing"
	"time"

	"github.com/google/go-tpm/tpm2"

	"github.com/sealift/sealift/image/manifest"
)

// paperTPM signs what a TPM would sign, and also what a TPM never would.
type paperTPM struct {
	tb       testing.TB
	ak       *ecdsa.PrivateKey
	ek       crypto.PublicKey
	akPublic tpm2.TPMTPublic
	ekPublic tpm2.TPMTPublic
	certs    [][]byte
	banks    []string
	pcrs     map[string]map[int][]byte // bank to PCR
	clock    tpm2.TPMSClockInfo
	firmware uint64

	hierarchy tpm2.TPMHandle // of the attestation key
	// Changes before signing.
	onQuote     func(bank string, a *tpm2.TPMSAttest)
	onCertify   func(*tpm2.TPMSAttest)
	onTransport func(*tpm2.TPMTPublic)
	onCreation  func(*tpm2.TPMSCreationData)
	rawQuote    func([]byte) []byte
	signHash    tpm2.TPMAlgID
}

func newKey(tb testing.TB, c elliptic.Curve) *ecdsa.PrivateKey {
	tb.Helper()
	k, err := ecdsa.GenerateKey(c, rand.Reader)
	if err != nil {
		tb.Fatal(err)
	}
	return k
}

func point(tb testing.TB, k *ecdsa.PublicKey) *tpm2.TPMSECCPoint {
	tb.Helper()
	b, err := k.Bytes()
	if err != nil {
		tb.Fatal(err)
	}
	n := len(b) / 2
	return &tpm2.TPMSECCPoint{X: tpm2.TPM2BECCParameter{Buffer: b[1 : 1+n : 1+n]}, Y: tpm2.TPM2BECCParameter{Buffer: b[1+n:]}}
}

func paperAK(tb testing.TB, k *ecdsa.PublicKey) tpm2.TPMTPublic {
	tb.Helper()
	return tpm2.TPMTPublic{
		Type: tpm2.TPMAlgECC, NameAlg: tpm2.TPMAlgSHA256,
		ObjectAttributes: tpm2.TPMAObject{
			FixedTPM: true, FixedParent: true, SensitiveDataOrigin: true, UserWithAuth: true, NoDA: true, Restricted: true, SignEncrypt: true,
		},
		Parameters: tpm2.NewTPMUPublicParms(tpm2.TPMAlgECC, &tpm2.TPMSECCParms{
			Symmetric: tpm2.TPMTSymDefObject{Algorithm: tpm2.TPMAlgNull},
			CurveID:   tpm2.TPMECCNistP256,
			Scheme: tpm2.TPMTECCScheme{Scheme: tpm2.TPMAlgECDSA,
				Details: tpm2.NewTPMUAsymScheme(tpm2.TPMAlgECDSA, &tpm2.TPMSSigSchemeECDSA{HashAlg: tpm2.TPMAlgSHA256})},
			KDF: tpm2.TPMTKDFScheme{Scheme: tpm2.TPMAlgNull},
		}),
		Unique: tpm2.NewTPMUPublicID(tpm2.TPMAlgECC, point(tb, k)),
	}
}

func paperEK(tb testing.TB, key crypto.PublicKey) tpm2.TPMTPublic {
	tb.Helper()
	p := tpm2.ECCEKTemplate
	switch k := key.(type) {
	case *rsa.PublicKey:
		p = tpm2.RSAEKTemplate
		p.Unique = tpm2.NewTPMUPublicID(tpm2.TPMAlgRSA, &tpm2.TPM2BPublicKeyRSA{Buffer: k.N.Bytes()})
	case *ecdsa.PublicKey:
		bits := tpm2.TPMKeyBits(128)
		curve := tpm2.TPMECCNistP256
		if k.Curve == elliptic.P384() {
			p.NameAlg, bits, curve = tpm2.TPMAlgSHA384, 256, tpm2.TPMECCNistP384
			p.ObjectAttributes.UserWithAuth = true
		}
		p.Parameters = tpm2.NewTPMUPublicParms(tpm2.TPMAlgECC, &tpm2.TPMSECCParms{
			Symmetric: tpm2.TPMTSymDefObject{Algorithm: tpm2.TPMAlgAES,
				KeyBits: tpm2.NewTPMUSymKeyBits(tpm2.TPMAlgAES, bits), Mode: tpm2.NewTPMUSymMode(tpm2.TPMAlgAES, tpm2.TPMAlgCFB)},
			CurveID: curve,
		})
		p.Unique = tpm2.NewTPMUPublicID(tpm2.TPMAlgECC, point(tb, k))
	default:
		tb.Fatalf("no endorsement key of type %T", key)
	}
	return p
}

// paperCA is an authority for endorsement certificates.
type paperCA struct {
	tb   testing.TB
	key  *ecdsa.PrivateKey
	root *x509.Certificate
}

func newPaperCA(tb testing.TB) *paperCA {
	tb.Helper()
	ca := &paperCA{tb: tb, key: newKey(tb, elliptic.P256())}
	ca.root = ca.sign(&x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "Paper TPM Root"},
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}, nil, ca.key.Public())
	return ca
}

var paperNow = time.Date(2026, 3, 4, 5, 6, 7, 0, time.UTC)

func (ca *paperCA) sign(c, parent *x509.Certificate, pub any) *x509.Certificate {
	ca.tb.Helper()
	if c.NotBefore.IsZero() {
		c.NotBefore, c.NotAfter = paperNow.Add(-time.Hour), paperNow.Add(time.Hour)
	}
	if parent == nil {
		parent = c
	}
	der, err := x509.CreateCertificate(rand.Reader, c, parent, pub, ca.key)
	if err != nil {
		ca.tb.Fatal(err)
	}
	out, err := x509.ParseCertificate(der)
	if err != nil {
		ca.tb.Fatal(err)
	}
	return out
}

// certify issues an endorsement certificate; change alters the template.
func (ca *paperCA) certify(pub any, change func(*x509.Certificate)) *x509.Certificate {
	ca.tb.Helper()
	name, err := asn1.Marshal(pkix.RDNSequence{{{Type: asn1.ObjectIdentifier{2, 23, 133, 2, 1}, Value: "id:50415052"}}})
	if err != nil {
		ca.tb.Fatal(err)
	}
	san, err := asn1.Marshal([]asn1.RawValue{{Class: asn1.ClassContextSpecific, Tag: 4, IsCompound: true, Bytes: name}})
	if err != nil {
		ca.tb.Fatal(err)
	}
	c := &x509.Certificate{
		SerialNumber: big.NewInt(2), KeyUsage: x509.KeyUsageKeyAgreement, BasicConstraintsValid: true,
		UnknownExtKeyUsage: []asn1.ObjectIdentifier{{2, 23, 133, 8, 1}},
		ExtraExtensions:    []pkix.Extension{{Id: asn1.ObjectIdentifier{2, 5, 29, 17}, Critical: true, Value: san}},
	}
	if change != nil {
		change(c)
	}
	return ca.sign(c, ca.root, pub)
}

func newPaperTPM(tb testing.TB, ca *paperCA) *paperTPM {
	tb.Helper()
	ek := newKey(tb, elliptic.P256())
	d := &paperTPM{
		tb: tb, ak: newKey(tb, elliptic.P256()), ek: ek.Public(),
		banks: []string{"sha256"}, pcrs: map[string]map[int][]byte{},
		clock:    tpm2.TPMSClockInfo{Clock: 50_000, ResetCount: 7, RestartCount: 1, Safe: true},
		firmware: 0x2019102300163636, hierarchy: tpm2.TPMRHEndorsement, signHash: tpm2.TPMAlgSHA256,
	}
	d.akPublic, d.ekPublic = paperAK(tb, &d.ak.PublicKey), paperEK(tb, d.ek)
	d.certs = [][]byte{ca.certify(d.ek, nil).Raw}
	return d
}

func (d *paperTPM) name() []byte { return nameOf(tpm2.Marshal(d.akPublic)) }

func (d *paperTPM) sign(message []byte) []byte {
	h, err := d.signHash.Hash()
	if err != nil {
		d.tb.Fatal(err)
	}
	hh := h.New()
	hh.Write(message)
	r, s, err := ecdsa.Sign(rand.Reader, d.ak, hh.Sum(nil))
	if err != nil {
		d.tb.Fatal(err)
	}
	return tpm2.Marshal(tpm2.TPMTSignature{SigAlg: tpm2.TPMAlgECDSA, Signature: tpm2.NewTPMUSignature(tpm2.TPMAlgECDSA, &tpm2.TPMSSignatureECC{
		Hash:       d.signHash,
		SignatureR: tpm2.TPM2BECCParameter{Buffer: r.FillBytes(make([]byte, 32))},
		SignatureS: tpm2.TPM2BECCParameter{Buffer: s.FillBytes(make([]byte, 32))},
	})})
}

func (d *paperTPM) attest(t tpm2.TPMST, extra []byte, attested tpm2.TPMUAttest) tpm2.TPMSAttest {
	return tpm2.TPMSAttest{
		Magic: tpm2.TPMGeneratedValue, Type: t,
		QualifiedSigner: tpm2.TPM2BName{Buffer: primaryQualifiedName(d.hierarchy, d.name())},
		ExtraData:       tpm2.TPM2BData{Buffer: extra},
		ClockInfo:       d.clock, FirmwareVersion: d.firmware, Attested: attested,
	}
}

// transport makes and certifies a transport key.
func (d *paperTPM) transport(nonce []byte) TransportKey {
	d.tb.Helper()
	policy, err := policyPCR(d.pcrs["sha256"])
	if err != nil {
		d.tb.Fatal(err)
	}
	key := newKey(d.tb, elliptic.P256())
	p := tpm2.ECCSRKTemplate
	p.ObjectAttributes.UserWithAuth = false
	p.AuthPolicy = tpm2.TPM2BDigest{Buffer: policy}
	p.Unique = tpm2.NewTPMUPublicID(tpm2.TPMAlgECC, point(d.tb, &key.PublicKey))
	if d.onTransport != nil {
		d.onTransport(&p)
	}
	null := binary.BigEndian.AppendUint32(nil, uint32(tpm2.TPMRHNull))
	c := tpm2.TPMSCreationData{
		PCRSelect:     selectionOf(tpm2.TPMAlgSHA256, PolicyPCRs()),
		PCRDigest:     tpm2.TPM2BDigest{Buffer: pcrDigest(d.pcrs["sha256"])},
		ParentNameAlg: tpm2.TPMAlgNull, ParentName: tpm2.TPM2BName{Buffer: null}, ParentQualifiedName: tpm2.TPM2BName{Buffer: null},
	}
	if d.onCreation != nil {
		d.onCreation(&c)
	}
	t := TransportKey{Public: tpm2.Marshal(p), CreationData: tpm2.Marshal(c)}
	h := sha256.Sum256(t.CreationData)
	a := d.attest(tpm2.TPMSTAttestCreation, CertifyData(nonce), tpm2.NewTPMUAttest(tpm2.TPMSTAttestCreation, &tpm2.TPMSCreationInfo{
		ObjectName: tpm2.TPM2BName{Buffer: nameOf(t.Public)}, CreationHash: tpm2.TPM2BDigest{Buffer: h[:]},
	}))
	if d.onCertify != nil {
		d.onCertify(&a)
	}
	t.Certify = tpm2.Marshal(a)
	t.Signature = d.sign(t.Certify)
	return t
}

func (d *paperTPM) quote(bank string, extra []byte) Quote {
	a := d.attest(tpm2.TPMSTAttestQuote, extra, tpm2.NewTPMUAttest(tpm2.TPMSTAttestQuote, &tpm2.TPMSQuoteInfo{
		PCRSelect: selectionOf(bankAlg(bank), PolicyPCRs()),
		PCRDigest: tpm2.TPM2BDigest{Buffer: pcrDigest(d.pcrs[bank])},
	}))
	if d.onQuote != nil {
		d.onQuote(bank, &a)
	}
	q := Quote{Bank: bank, Attest: tpm2.Marshal(a), PCRs: cloneValues(d.pcrs[bank])}
	if d.rawQuote != nil {
		q.Attest = d.rawQuote(q.Attest)
	}
	q.Signature = d.sign(q.Attest)
	return q
}

// measurement is one event: what is measured, and what the log says of it.
type measurement struct {
	pcr      int
	typ      EventType
	data     []byte
	measured []byte // nil: the data
}

func (m measurement) bytes() []byte {
	if m.measured != nil {
		return m.measured
	}
	return m.data
}

// encodeLog writes a crypto-agile event log.
func encodeLog(banks []string, events []measurement) []byte {
	var b []byte
	u32 := func(v uint32) { b = binary.LittleEndian.AppendUint32(b, v) }
	u16 := func(v uint16) { b = binary.LittleEndian.AppendUint16(b, v) }
	var spec []byte
	spec = append(spec, specIDSignature...)
	spec = append(spec, 0, 0, 0, 0, 0, 2, 0, 2)
	spec = binary.LittleEndian.AppendUint32(spec, uint32(len(banks)))
	for _, bank := range banks {
		h, _ := bankHash(bank)
		spec = binary.LittleEndian.AppendUint16(spec, uint16(bankAlg(bank)))
		spec = binary.LittleEndian.AppendUint16(spec, uint16(h.Size()))
	}
	spec = append(spec, 0)
	u32(0)
	u32(uint32(EventNoAction))
	b = append(b, make([]byte, 20)...)
	u32(uint32(len(spec)))
	b = append(b, spec...)
	for _, e := range events {
		u32(uint32(e.pcr))
		u32(uint32(e.typ))
		u32(uint32(len(banks)))
		for _, bank := range banks {
			h, _ := bankHash(bank)
			u16(uint16(bankAlg(bank)))
			hh := h.New()
			hh.Write(e.bytes())
			b = append(b, hh.Sum(nil)...)
		}
		u32(uint32(len(e.data)))
		b = append(b, e.data...)
	}
	return b
}

// encodeVariable writes UEFI_VARIABLE_DATA.
func encodeVariable(guid [16]byte, name string, data []byte) []byte {
	b := append([]byte{}, guid[:]...)
	b = binary.LittleEndian.AppendUint64(b, uint64(len(name)))
	b = binary.LittleEndian.AppendUint64(b, uint64(len(data)))
	for _, r := range name {
		b = append(b, byte(r), 0)
	}
	return append(b, data...)
}

var (
	paperGlobal   = [16]byte{0x61, 0xdf, 0xe4, 0x8b, 0xca, 0x93, 0xd2, 0x11, 0xaa, 0x0d, 0x00, 0xe0, 0x98, 0x03, 0x2b, 0x8c}
	paperSecurity = [16]byte{0xcb, 0xb2, 0x19, 0xd7, 0x3a, 0x3d, 0x96, 0x45, 0xa3, 0xbc, 0xda, 0xd0, 0x0e, 0x67, 0x65, 0x6f}
)

const paperDisk = "01020304-0506-0708-090a-0b0c0d0e0f10"

func paperGPT() []byte {
	b := make([]byte, 92+8)
	copy(b, "EFI PART")
	copy(b[56:], []byte{4, 3, 2, 1, 6, 5, 8, 7, 9, 10, 11, 12, 13, 14, 15, 16})
	return b
}

const paperCmdline = "console=ttyS0 sealift.roothash=00"

func digestOf(s string) manifest.SHA256 { return sha256.Sum256([]byte(s)) }

// paperEvents is the log of a good boot, laid out as OVMF's.
func paperEvents() []measurement {
	config := func(guid [16]byte, name, data string) measurement {
		return measurement{pcr: 7, typ: EventVariableConfig, data: encodeVariable(guid, name, []byte(data))}
	}
	separator := func(pcr int) measurement { return measurement{pcr: pcr, typ: EventSeparator, data: make([]byte, 4)} }
	action := func(pcr int, s string) measurement {
		return measurement{pcr: pcr, typ: EventAction, data: []byte(s)}
	}
	out := []measurement{
		{pcr: 0, typ: EventSCRTMVersion, data: []byte{0, 0}},
		{pcr: 0, typ: EventFirmwareBlob, data: []byte("base and length 1"), measured: []byte("pei volume")},
		{pcr: 0, typ: EventFirmwareBlob, data: []byte("base and length 2"), measured: []byte("dxe volume")},
		config(paperGlobal, "SecureBoot", "\x01"),
		config(paperGlobal, "PK", "pk"),
		config(paperGlobal, "KEK", "kek"),
		config(paperSecurity, "db", "db"),
		config(paperSecurity, "dbx", "dbx"),
		separator(7),
		{pcr: 1, typ: EventVariableBoot, data: []byte("boot order"), measured: []byte("order")},
		action(4, actionCalling),
	}
	for pcr := range 7 {
		out = append(out, separator(pcr))
	}
	out = append(out,
		measurement{pcr: 7, typ: EventAuthority, data: encodeVariable(paperSecurity, "db", []byte("owner and certificate"))},
		measurement{pcr: 5, typ: EventGPT, data: paperGPT()},
		measurement{pcr: 4, typ: EventBootApplication, data: []byte("device path"), measured: []byte("uki")},
	)
	for _, s := range []string{".linux", ".osrel", ".cmdline", ".initrd"} {
		out = append(out, section(s, "contents of "+s)...)
	}
	return append(out,
		measurement{pcr: 9, typ: EventTag, data: []byte("LOADED_IMAGE::LoadOptions"), measured: encodeUTF16(paperCmdline)},
		measurement{pcr: 9, typ: EventTag, data: []byte("Linux initrd"), measured: []byte("initrd")},
		action(5, actionExit), action(5, actionExitDone),
	)
}

func section(name, contents string) []measurement {
	return []measurement{
		{pcr: 11, typ: EventIPL, data: encodeUTF16(name), measured: []byte(name + "\x00")},
		{pcr: 11, typ: EventIPL, data: encodeUTF16(name), measured: []byte(contents)},
	}
}

func paperImage() *manifest.Manifest {
	variable := func(guid [16]byte, name, data string) manifest.SHA256 {
		return sha256.Sum256(encodeVariable(guid, name, []byte(data)))
	}
	m := &manifest.Manifest{Schema: manifest.Schema, Name: "demo", Version: "1"}
	m.SecureBoot = manifest.SecureBoot{
		PK: variable(paperGlobal, "PK", "pk"), KEK: variable(paperGlobal, "KEK", "kek"), DB: variable(paperSecurity, "db", "db"),
		Authority: variable(paperSecurity, "db", "owner and certificate"),
	}
	m.UKI = manifest.UKI{Cmdline: paperCmdline, Authenticode: digestOf("uki"), Kernel: digestOf("kernel"), Initrd: digestOf("initrd")}
	for _, s := range []string{".linux", ".osrel", ".cmdline", ".initrd"} {
		m.UKI.Sections = append(m.UKI.Sections, manifest.Section{Name: s, SHA256: digestOf("contents of " + s)})
	}
	return m
}

// encodeSMBIOS writes a structure table with types 0, 1 and 127.
func encodeSMBIOS(version, manufacturer, product string) []byte {
	var b bytes.Buffer
	b.Write([]byte{0, 24, 0, 0, 1, 2, 0, 0, 3})
	b.Write(make([]byte, 24-9))
	b.WriteString("EDK II\x00" + version + "\x0002/06/2015\x00\x00")
	b.Write([]byte{1, 27, 1, 0, 1, 2, 0, 3})
	b.Write(make([]byte, 27-8))
	b.WriteString(manufacturer + "\x00" + product + "\x00serial-1\x00\x00")
	b.Write([]byte{127, 4, 2, 0, 0, 0})
	return b.Bytes()
}

// scene is a boot of a machine and what the service knows of it. The new scene
// is accepted.
type scene struct {
	t        testing.TB
	ca       *paperCA
	tpm      *paperTPM
	measured []measurement // what was extended
	logged   []measurement // what the log says; nil: the same
	extra    []measurement // extended after the boot and not logged
	smbios   []byte
	disk     Disk
	banks    []string // declared by the log
	rawLog   []byte   // instead of measured and logged
	rawPCRs  map[string]map[int][]byte

	ch     *Challenge
	ses    *Session
	known  *Known
	policy *Policy
	ev     *Evidence
}

func newScene(tb testing.TB) *scene {
	tb.Helper()
	ca := newPaperCA(tb)
	d := newPaperTPM(tb, ca)
	s := &scene{
		t: tb, ca: ca, tpm: d, measured: paperEvents(), smbios: encodeSMBIOS("1.0", "Paper", "Box"),
		disk: Disk{GUID: paperDisk, StateExists: true}, banks: []string{"sha256"},
		ses:   &Session{Exporter: bytes.Repeat([]byte{7}, 32), Now: paperNow},
		known: &Known{State: StateEnrolled, DiskGUID: paperDisk, StateMade: true, ResetCount: 6, Clock: 40_000, AKName: d.name(), TPMFirmware: d.firmware},
		policy: &Policy{
			ID: "test policy", Images: []*manifest.Manifest{paperImage()},
			Firmware: FirmwarePolicy{References: []FirmwareReference{
				{Vendor: "Paper", Product: "Box", Version: "1.0", Digests: []manifest.SHA256{digestOf("dxe volume")}, Unpinned: 1, Status: FirmwareAllowed},
				{Vendor: "Paper", Product: "Box", Version: "2.0", Digests: []manifest.SHA256{digestOf("dxe volume 2")}, Unpinned: 1, Status: FirmwareAllowed},
				{Vendor: "Paper", Product: "Box", Version: "0.9", Digests: []manifest.SHA256{digestOf("dxe volume 0")}, Unpinned: 1, Status: FirmwareDenied, Reason: "CVE-1"},
			}},
			TPM: TPMPolicy{Roots: []TPMRoot{{Class: TPMSoftware, Certificate: ca.root}}, Allowed: []TPMClass{TPMSoftware}},
		},
	}
	s.ch = &Challenge{
		ID: "challenge-1", Purpose: PurposeUnlock, Nonce: bytes.Repeat([]byte{9}, 32), ActivationSecret: bytes.Repeat([]byte{5}, 32),
		Expires: paperNow.Add(time.Minute),
	}
	return s
}

// collect makes the evidence.
func (s *scene) collect() {
	s.t.Helper()
	d := s.tpm
	l, err := ParseEventLog(encodeLog(d.banks, append(append([]measurement{}, s.measured...), s.extra...)))
	if err != nil {
		s.t.Fatal(err)
	}
	for _, bank := range d.banks {
		d.pcrs[bank] = map[int][]byte{}
		for _, p := range PolicyPCRs() {
			if d.pcrs[bank][p], err = l.Replay(bank, p); err != nil {
				s.t.Fatal(err)
			}
			if s.rawPCRs != nil {
				d.pcrs[bank][p] = s.rawPCRs[bank][p]
			}
		}
	}
	logged := s.logged
	if logged == nil {
		logged = s.measured
	}
	s.ev = &Evidence{
		EKPublic: tpm2.Marshal(d.ekPublic), EKCertificates: d.certs, AKPublic: tpm2.Marshal(d.akPublic),
		EventLog: encodeLog(s.banks, logged), SMBIOS: s.smbios, Disk: s.disk,
	}
	if s.rawLog != nil {
		s.ev.EventLog = s.rawLog
	}
	s.ch.AKPublic, s.ch.EKPublic = s.ev.AKPublic, s.ev.EKPublic
	s.ev.Transport = d.transport(s.ch.Nonce)
	extra := QualifyingData(Binding{Purpose: s.ch.Purpose, Nonce: s.ch.Nonce, Exporter: s.ses.Exporter, TransportID: nameOf(s.ev.Transport.Public)}, s.ev)
	for _, bank := range d.banks {
		s.ev.Quotes = append(s.ev.Quotes, d.quote(bank, extra))
	}
	s.ses.ActivationProof = ActivationProof(s.ch.ActivationSecret, s.ch.ID, s.ch.Nonce, s.ev.AKPublic)
}

func (s *scene) verify() *Result { return Verify(s.ev, s.ch, s.ses, s.known, s.policy) }

// replace changes the first measurement for which match holds.
func (s *scene) replace(match func(measurement) bool, change func(*measurement)) {
	s.t.Helper()
	for i := range s.measured {
		if match(s.measured[i]) {
			change(&s.measured[i])
			return
		}
	}
	s.t.Fatal("no such measurement")
}

// insertAfter adds measurements behind the first for which match holds.
func (s *scene) insertAfter(match func(measurement) bool, add ...measurement) {
	s.t.Helper()
	for i := range s.measured {
		if match(s.measured[i]) {
			s.measured = append(s.measured[:i+1:i+1], append(add, s.measured[i+1:]...)...)
			return
		}
	}
	s.t.Fatal("no such measurement")
}

// of matches a measurement by what was measured.
func of(measured string) func(measurement) bool {
	return func(m measurement) bool { return string(m.bytes()) == measured }
}

func isSeparatorOf(pcr int) func(measurement) bool {
	return func(m measurement) bool { return m.pcr == pcr && m.typ == EventSeparator }
}

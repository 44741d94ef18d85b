package pe

import (
	"bytes"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/binary"
	"encoding/pem"
	"errors"
	"io/fs"
	"math/big"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/sealift/sealift/image/pkcs7"
)

const (
	stubPath = "/usr/lib/systemd/boot/efi/linuxx64.efi.stub"
	bootPath = "/usr/lib/systemd/boot/efi/systemd-bootx64.efi"
)

func needFile(t testing.TB, path string) []byte {
	t.Helper()
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) && os.Getenv("REQUIRE_TOOLS") == "" {
		t.Skipf("%s is not installed", path)
	}
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func needTool(t *testing.T, name string) string {
	t.Helper()
	path, err := exec.LookPath(name)
	if err != nil {
		if os.Getenv("REQUIRE_TOOLS") != "" {
			t.Fatalf("%s is required: %v", name, err)
		}
		t.Skipf("%s is not installed", name)
	}
	return path
}

func newSigner(t testing.TB, serial int64) *pkcs7.Signer {
	t.Helper()
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	c := &x509.Certificate{
		SerialNumber: big.NewInt(serial), Subject: pkix.Name{CommonName: "test db"},
		NotBefore: time.Unix(1600000000, 0), NotAfter: time.Unix(2100000000, 0),
	}
	der, err := x509.CreateCertificate(rand.Reader, c, c, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return &pkcs7.Signer{Key: key, Certificate: cert}
}

// section is one of a made image.
type section struct {
	name         string
	address      uint32
	virtual, raw uint32
	offset       uint32
}

// tiny returns the smallest PE32+ image with the given sections: headers of
// 1024 bytes, as long as the sections need it.
func tiny(sections ...section) []byte {
	size := uint32(1024)
	for _, s := range sections {
		size = max(size, s.offset+s.raw)
	}
	b := make([]byte, size)
	for i := range b[1024:] {
		b[1024+i] = byte(i)
	}
	le := binary.LittleEndian
	copy(b, "MZ")
	le.PutUint32(b[0x3c:], 64)
	copy(b[64:], "PE\x00\x00")
	coff, optional := b[68:], b[88:]
	le.PutUint16(coff, MachineAMD64)
	le.PutUint16(coff[2:], uint16(len(sections)))
	le.PutUint16(coff[16:], 240)
	le.PutUint16(optional, 0x20b)
	le.PutUint32(optional[32:], 4096)
	le.PutUint32(optional[36:], 512)
	le.PutUint32(optional[56:], 1<<20)
	le.PutUint32(optional[60:], 1024)
	le.PutUint16(optional[68:], 10)
	le.PutUint32(optional[108:], 16)
	for i, s := range sections {
		h := b[88+240+40*i:]
		copy(h[:8], s.name)
		le.PutUint32(h[8:], s.virtual)
		le.PutUint32(h[12:], s.address)
		le.PutUint32(h[16:], s.raw)
		le.PutUint32(h[20:], s.offset)
	}
	return b
}

var text = section{".text", 4096, 700, 1024, 1024}

func TestSbverifyAcceptsOurSignature(t *testing.T) {
	tool := needTool(t, "sbverify")
	s, other := newSigner(t, 1), newSigner(t, 2).Certificate
	dir := t.TempDir()
	cert := filepath.Join(dir, "cert.pem")
	if err := os.WriteFile(cert, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.Certificate.Raw}), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, image := range map[string][]byte{
		"systemd-boot":          needFile(t, bootPath),
		"made image":            tiny(text),
		"size not a multiple":   append(tiny(text), 1, 2, 3),
		"sections out of order": tiny(section{".b", 8192, 512, 512, 1536}, section{".a", 4096, 512, 512, 1024}),
	} {
		for _, at := range []time.Time{{}, time.Unix(1700000000, 0)} {
			t.Run(name+", time "+at.UTC().Format("2006"), func(t *testing.T) {
				signer := *s
				signer.Time = at
				signed, err := Sign(image, &signer)
				if err != nil {
					t.Fatal(err)
				}
				again, err := Sign(image, &signer)
				if err != nil || !bytes.Equal(signed, again) {
					t.Errorf("the same input gave another signature (%v)", err)
				}
				path := filepath.Join(dir, "signed.efi")
				if err := os.WriteFile(path, signed, 0o600); err != nil {
					t.Fatal(err)
				}
				if out, err := exec.Command(tool, "--cert", cert, path).CombinedOutput(); err != nil {
					t.Errorf("sbverify: %v\n%s", err, out)
				}
				a, err1 := Parse(image)
				b, err2 := Parse(signed)
				if err := errors.Join(err1, err2); err != nil {
					t.Fatal(err)
				}
				if a.Authenticode() != b.Authenticode() {
					t.Error("the digest changes with signing")
				}
				if c, err := b.Verify(other, s.Certificate); err != nil || !c.Equal(s.Certificate) {
					t.Errorf("Verify: %v", err)
				}
				if _, err := Sign(signed, &signer); err == nil {
					t.Error("a signed image is signed again")
				}
			})
		}
	}
}

func TestWeVerifyWhatSbsignSigns(t *testing.T) {
	tool := needTool(t, "sbsign")
	s := newSigner(t, 1)
	dir := t.TempDir()
	key, cert, in, out := filepath.Join(dir, "key"), filepath.Join(dir, "cert"), filepath.Join(dir, "in"), filepath.Join(dir, "out")
	der, err := x509.MarshalPKCS8PrivateKey(s.Key)
	if err := errors.Join(err,
		os.WriteFile(key, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), 0o600),
		os.WriteFile(cert, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.Certificate.Raw}), 0o600),
		os.WriteFile(in, needFile(t, bootPath), 0o600)); err != nil {
		t.Fatal(err)
	}
	if b, err := exec.Command(tool, "--key", key, "--cert", cert, "--output", out, in).CombinedOutput(); err != nil {
		t.Fatalf("sbsign: %v\n%s", err, b)
	}
	f, err := Parse(needFile(t, out))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.Verify(s.Certificate); err != nil {
		t.Error(err)
	}
}

func TestAnyChangedByteBreaksTheSignature(t *testing.T) {
	s := newSigner(t, 1)
	image := tiny(text, section{".data", 8192, 512, 512, 2048})
	signed, err := Sign(image, s)
	if err != nil {
		t.Fatal(err)
	}
	for i := range image {
		if i >= 88+64 && i < 88+68 { // the checksum is not covered
			continue
		}
		b := bytes.Clone(signed)
		b[i] ^= 0x40
		f, err := Parse(b)
		if err != nil {
			continue
		}
		if _, err := f.Verify(s.Certificate); err == nil {
			t.Errorf("byte %#x of the image changed: accepted", i)
		}
	}
	f, err := Parse(image)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.Verify(s.Certificate); err == nil || !strings.Contains(err.Error(), "not signed") {
		t.Errorf("unsigned image: %v", err)
	}
}

func TestSectionDataIsCutToVirtualSize(t *testing.T) {
	f, err := Parse(tiny(text, section{".bss", 8192, 4096, 0, 0}))
	if err != nil {
		t.Fatal(err)
	}
	s, ok, err := f.Section(".text")
	if err != nil || !ok || len(s.Data()) != 700 || len(s.Raw()) != 1024 {
		t.Errorf(".text has %d and %d bytes, want 700 and 1024 (%t, %v)", len(s.Data()), len(s.Raw()), ok, err)
	}
	if s, _, _ := f.Section(".bss"); len(s.Data()) != 0 {
		t.Errorf(".bss has %d bytes", len(s.Data()))
	}
	if _, ok, err := f.Section(".none"); ok || err != nil {
		t.Errorf(".none is there: %t, %v", ok, err)
	}
}

func TestStrangeImagesAreRefused(t *testing.T) {
	le := binary.LittleEndian
	edit := func(change func(b []byte)) []byte {
		b := tiny(text)
		change(b)
		return b
	}
	for name, c := range map[string]struct {
		image []byte
		want  string
	}{
		"empty":                          {nil, "no MZ header"},
		"no MZ":                          {make([]byte, 4096), "no MZ header"},
		"PE header outside":              {edit(func(b []byte) { le.PutUint32(b[0x3c:], 0xfffffff0) }), "outside of the file"},
		"PE header in the DOS header":    {edit(func(b []byte) { le.PutUint32(b[0x3c:], 4) }), "outside of the file"},
		"no PE signature":                {edit(func(b []byte) { b[64] = 'N' }), "want \"PE"},
		"32-bit machine":                 {edit(func(b []byte) { le.PutUint16(b[68:], 0x14c) }), "machine is 0x14c"},
		"PE32":                           {edit(func(b []byte) { le.PutUint16(b[88:], 0x10b) }), "want PE32+"},
		"no sections":                    {tiny(), "0 sections"},
		"too many sections":              {edit(func(b []byte) { le.PutUint16(b[70:], 97) }), "97 sections"},
		"section table outside":          {edit(func(b []byte) { le.PutUint16(b[70:], 60) }), "do not fit"},
		"small optional header":          {edit(func(b []byte) { le.PutUint16(b[84:], 100) }), "do not fit"},
		"too many directories":           {edit(func(b []byte) { le.PutUint32(b[88+108:], 17) }), "17 data directories"},
		"headers end in the table":       {edit(func(b []byte) { le.PutUint32(b[88+60:], 200) }), "SizeOfHeaders"},
		"headers end outside":            {edit(func(b []byte) { le.PutUint32(b[88+60:], 1<<30) }), "SizeOfHeaders"},
		"odd file alignment":             {edit(func(b []byte) { le.PutUint32(b[88+36:], 500) }), "power of two"},
		"section alignment zero":         {edit(func(b []byte) { le.PutUint32(b[88+32:], 0) }), "power of two"},
		"section outside the file":       {edit(func(b []byte) { le.PutUint32(b[88+240+16:], 1<<20) }), "are outside of"},
		"section wraps around":           {edit(func(b []byte) { le.PutUint32(b[88+240+20:], 0xfffffe00) }), "are outside of"},
		"section in the headers":         {edit(func(b []byte) { le.PutUint32(b[88+240+20:], 512) }), "are outside of"},
		"section outside SizeOfImage":    {edit(func(b []byte) { le.PutUint32(b[88+240+8:], 1<<24) }), "SizeOfImage"},
		"NUL in a section name":          {tiny(section{".t\x00xt", 4096, 512, 512, 1024}), "not a plain one"},
		"long section name":              {tiny(section{"/4", 4096, 512, 512, 1024}), "not a plain one"},
		"sections overlap in the file":   {tiny(text, section{".data", 8192, 512, 512, 1536}), "overlap in the file"},
		"sections overlap in memory":     {tiny(text, section{".data", 4500, 512, 512, 2048}), "overlap in memory"},
		"certificate table inside":       {edit(func(b []byte) { le.PutUint32(b[88+144:], 1024); le.PutUint32(b[88+148:], 16) }), "certificate table"},
		"certificate table not aligned":  {edit(func(b []byte) { le.PutUint32(b[88+144:], 2047); le.PutUint32(b[88+148:], 1) }), "certificate table"},
		"section over certificate table": {edit(func(b []byte) { le.PutUint32(b[88+144:], 2040); le.PutUint32(b[88+148:], 8) }), "are outside of"},
	} {
		if _, err := Parse(c.image); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: error is %v, want one with %q", name, err, c.want)
		}
	}
	f, err := Parse(tiny(text, section{".text", 8192, 512, 512, 2048}))
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := f.Section(".text"); err == nil {
		t.Error("one of two sections of the same name is taken")
	}
}

func TestBadCertificateTablesAreRefused(t *testing.T) {
	s := newSigner(t, 1)
	signed, err := Sign(tiny(text), s)
	if err != nil {
		t.Fatal(err)
	}
	f, err := Parse(signed)
	if err != nil {
		t.Fatal(err)
	}
	le := binary.LittleEndian
	for name, change := range map[string]func(b []byte){
		"entry longer than the table": func(b []byte) { le.PutUint32(b, 1<<20) },
		"entry shorter than a header": func(b []byte) { le.PutUint32(b, 7) },
		"another revision":            func(b []byte) { b[4] = 1 },
		"another type":                func(b []byte) { b[6] = 1 },
		"not DER":                     func(b []byte) { b[8] = 0 },
		"DER longer than the entry":   func(b []byte) { b[10] = 0xff },
		"DER shorter than the entry":  func(b []byte) { b[11]-- },
	} {
		b := bytes.Clone(signed)
		change(b[f.certOffset:])
		g, err := Parse(b)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if _, err := g.Verify(s.Certificate); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

func FuzzParse(f *testing.F) {
	s := newSigner(f, 1)
	signed, err := Sign(tiny(text), s)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(signed)
	f.Add(tiny(text, section{".data", 8192, 512, 512, 2048}))
	f.Add([]byte("MZ"))
	want, err := Parse(signed)
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		p, err := Parse(b)
		if err != nil {
			return
		}
		for _, s := range p.Sections {
			if len(s.Data()) > len(s.Raw()) || uint64(len(s.Data())) > uint64(s.VirtualSize) {
				t.Errorf("section %s has %d bytes of %d", s.Name, len(s.Data()), len(s.Raw()))
			}
		}
		// Whatever verifies has the digest that was signed.
		if _, err := p.Verify(s.Certificate); err == nil && p.Authenticode() != want.Authenticode() {
			t.Error("an image that was never signed verifies")
		}
	})
}

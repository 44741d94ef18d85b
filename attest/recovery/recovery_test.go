package recovery

import (
	"bytes"
	"crypto/ecdh"
	"crypto/rand"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/sealift/sealift/attest"
)

const disk = "6a0d1e0c-3b1f-4a56-9d0e-0123456789ab"

var machine = attest.MachineIDOf([]byte("box"))

func newBoot(t testing.TB) *BootKey {
	t.Helper()
	k, err := NewBootKey(machine, disk)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func half() attest.Secret { return bytes.Repeat([]byte{7}, halfSize) }

// code asks for a code with the request that k shows.
func code(t testing.TB, k *BootKey, expires time.Time) []string {
	t.Helper()
	boot, err := ParseRequest(strings.Join(k.Request(), "\n"), k.machine, k.disk)
	if err != nil {
		t.Fatal(err)
	}
	c, err := Seal(boot, k.machine, k.disk, &Secrets{DiskKey: half(), NameDigits: 10}, expires)
	if err != nil {
		t.Fatal(err)
	}
	return strings.Split(string(c), "\n")
}

// enter types lines and returns what the last one gives.
func enter(r *Reader, lines []string, now time.Time) (s *Secrets, err error) {
	for _, l := range lines {
		if _, s, err = r.Line(l, now); err != nil {
			return nil, err
		}
	}
	return s, nil
}

// numbered puts the number of each line in front of it.
func numbered(lines []string) []string {
	var out []string
	for i, l := range lines {
		out = append(out, fmt.Sprintf(" %d: %s", i+1, l))
	}
	return out
}

func soon() time.Time { return time.Now().Add(time.Hour) }

func TestACodeOpensInItsBootAsItIsTyped(t *testing.T) {
	k := newBoot(t)
	lines := code(t, k, soon())
	if len(lines) != CodeLines || len(k.Request()) != RequestLines {
		t.Fatalf("%d lines of code, %d of request", len(lines), len(k.Request()))
	}
	if want := "#####"; len(strings.Fields(lines[0])) != 4 || len(strings.Fields(lines[0])[0]) != len(want) {
		t.Errorf("a line is %q", lines[0])
	}
	typed := map[string]func() []string{
		"as shown":       func() []string { return lines },
		"in lower case":  func() []string { return strings.Split(strings.ToLower(strings.Join(lines, "\n")), "\n") },
		"without groups": func() []string { return strings.Split(strings.ReplaceAll(strings.Join(lines, "\n"), " ", ""), "\n") },
		"with dashes":    func() []string { return strings.Split(strings.ReplaceAll(strings.Join(lines, "\n"), " ", "-"), "\n") },
		"with O, I and L": func() []string {
			return strings.Split(strings.NewReplacer("0", "o", "1", "l").Replace(strings.Join(lines, "\n")), "\n")
		},
		"a line twice":       func() []string { return append([]string{lines[3], lines[0]}, lines...) },
		"in the wrong order": func() []string { return append(append([]string{}, lines[4:]...), lines[:4]...) },
		"with the numbers":   func() []string { return numbered(lines) },
		"with many spaces": func() []string {
			return append(lines[:7:7], lines[7]+strings.Repeat(" ", MaxText-len(lines[7])))
		},
	}
	for name, f := range typed {
		t.Run(name, func(t *testing.T) {
			// The last line to come opens it, whatever comes again.
			var got *Secrets
			r := k.Reader()
			for _, l := range f() {
				_, s, err := r.Line(l, time.Now())
				if err != nil {
					t.Fatal(err)
				}
				if s != nil {
					got = s
				}
			}
			if got == nil || !bytes.Equal(got.DiskKey, half()) || got.NameDigits != 10 {
				t.Errorf("got %+v", got)
			}
		})
	}
}

// The vectors were made with Python's cryptography (X25519, HKDF, AES-GCM) and
// a search for the check symbols, from the comments of this package.
const (
	vectorRequest = `043T6 Z5W2G G97J5 QAQYK
E1P47 8DJT2 CDTAT 5NABD
GMZD1 FFW1C NRDME 7R572
JG9YX PEGCG QMVEQ S96RQ`
	vectorCode = `G5BH8 XMX25 NZES1 PNS9T
TBRY9 X5GRA T683R PDC2W
A9SR0 Q3Y4T CB846 3C0N2
7MGSB G1ZNH 0JW6H TSZDQ
EW4GT D042M S4X80 94HBS
SM7FD GYFST F26RF NSMVK
QAJ4B 3DCKN GQD88 XMGAT
C7ER2 645EH 0YGMC 7FDS5`
)

func TestVectors(t *testing.T) {
	private := make([]byte, keySize)
	for i := range private {
		private[i] = byte(i + 1)
	}
	key, err := ecdh.X25519().NewPrivateKey(private)
	if err != nil {
		t.Fatal(err)
	}
	k := &BootKey{key: key, machine: machine, disk: disk}
	if got := strings.Join(k.Request(), "\n"); got != vectorRequest {
		t.Errorf("the request is\n%s\nwant\n%s", got, vectorRequest)
	}
	s, err := enter(k.Reader(), strings.Split(vectorCode, "\n"), time.Now())
	if err != nil || !bytes.Equal(s.DiskKey, half()) || s.NameDigits != 16 {
		t.Errorf("got %+v, %v", s, err)
	}
}

func TestACodeIsForOneBootMachineDiskAndTime(t *testing.T) {
	k := newBoot(t)
	lines := code(t, k, soon())
	for name, other := range map[string]*BootKey{
		"after a reboot":  newBoot(t),
		"another machine": {key: k.key, machine: attest.MachineIDOf([]byte("other")), disk: disk},
		"another disk":    {key: k.key, machine: machine, disk: strings.Replace(disk, "6a", "6b", 1)},
	} {
		if s, err := enter(other.Reader(), lines, time.Now()); !errors.Is(err, ErrOtherBoot) {
			t.Errorf("%s: %v, %v", name, s, err)
		}
	}
	var expired *ExpiredError
	if s, err := enter(k.Reader(), lines, time.Now().Add(61*time.Minute)); !errors.As(err, &expired) {
		t.Errorf("too late: %v, %v", s, err)
	}
	if s, err := enter(k.Reader(), lines, time.Unix(0, 0)); err != nil || s == nil {
		t.Errorf("a clock that lost its time: %v", err)
	}
}

func TestACodeOfAKeyThatIsBeingChangedHoldsBothHalves(t *testing.T) {
	k := newBoot(t)
	next := attest.Secret(bytes.Repeat([]byte{8}, halfSize))
	c, err := Seal(k.key.PublicKey().Bytes(), machine, disk, &Secrets{DiskKey: half(), NextDiskKey: next, NameDigits: 59}, soon())
	if err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(string(c), "\n")
	if len(lines) != LongLines {
		t.Fatalf("%d lines", len(lines))
	}
	for _, order := range [][]string{lines, append(append([]string{}, lines[6:]...), lines[:6]...), numbered(lines)} {
		r := k.Reader()
		var s *Secrets
		for _, l := range order {
			if _, s, err = r.Line(l, time.Now()); err != nil {
				t.Fatal(err)
			}
		}
		if s == nil || !bytes.Equal(s.DiskKey, half()) || !bytes.Equal(s.NextDiskKey, next) || s.NameDigits != 59 {
			t.Errorf("got %+v", s)
		}
	}
	// Whoever makes a short code of a long one gets nothing.
	var data [][]byte
	for i, l := range lines[:CodeLines] {
		_, d, err := decodeLine(l, LongLines, i+1)
		if err != nil {
			t.Fatal(err)
		}
		data = append(data, d)
	}
	b := join(data)
	b[0] = codeVersion
	if s, err := enter(k.Reader(), encode(b), time.Now()); err == nil {
		t.Errorf("got %v", s)
	}
	if _, err := Seal(k.key.PublicKey().Bytes(), machine, disk, &Secrets{DiskKey: half(), NextDiskKey: next[1:], NameDigits: 10}, soon()); err == nil {
		t.Error("a short next half was taken")
	}
}

func TestWhatIsAlteredDoesNotOpen(t *testing.T) {
	k := newBoot(t)
	var data [][]byte
	for i, l := range code(t, k, soon()) {
		_, d, err := decodeLine(l, CodeLines, i+1)
		if err != nil {
			t.Fatal(err)
		}
		data = append(data, d)
	}
	b := join(data)
	for i := range b {
		c := bytes.Clone(b)
		c[i] ^= 1
		// Whoever alters a code makes its checksums right.
		if s, err := enter(k.Reader(), encode(c), time.Now()); err == nil {
			t.Errorf("byte %d: got %v", i, s)
		}
	}
	zero := append([]byte{codeVersion}, make([]byte, codeSize+plainSize-1)...)
	if s, err := enter(k.Reader(), encode(zero), time.Now()); err == nil {
		t.Errorf("a key of low order: got %v", s)
	}
}

// sealed makes the bytes of a code as Seal does, of what Seal would not make.
func sealed(t *testing.T, k *BootKey, version byte, plain, serviceKey, shared []byte) []byte {
	t.Helper()
	boot := k.key.PublicKey().Bytes()
	aead, err := sealer(shared, boot, serviceKey)
	if err != nil {
		t.Fatal(err)
	}
	at := bytes.Repeat([]byte{0xff}, timeSize)
	b := append(append([]byte{version}, serviceKey...), at...)
	return aead.Seal(b, make([]byte, aead.NonceSize()), plain, additional(version, machine, disk, boot, serviceKey, at))
}

func TestACodeThatSealWouldNotMakeDoesNotOpen(t *testing.T) {
	k := newBoot(t)
	service, err := ecdh.X25519().GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	public := service.PublicKey().Bytes()
	shared, err := service.ECDH(k.key.PublicKey())
	if err != nil {
		t.Fatal(err)
	}
	plain := func(size int, digits byte) []byte {
		p := make([]byte, size)
		p[halfSize] = digits
		return p
	}
	for name, tt := range map[string]struct {
		code []byte
		want int // digits; 0: it does not open
	}{
		"one digit":                          {sealed(t, k, codeVersion, plain(plainSize, 1), public, shared), 1},
		"all digits":                         {sealed(t, k, codeVersion, plain(plainSize, 64), public, shared), 64},
		"no digits":                          {sealed(t, k, codeVersion, plain(plainSize, 0), public, shared), 0},
		"more digits than there are":         {sealed(t, k, codeVersion, plain(plainSize, 65), public, shared), 0},
		"one half and the version of two":    {sealed(t, k, longVersion, plain(plainSize, 10), public, shared), 0},
		"two halves and the version of one":  {sealed(t, k, codeVersion, plain(longSize, 10), public, shared), 0},
		"a version that there is not":        {sealed(t, k, longVersion+1, plain(plainSize, 10), public, shared), 0},
		"the same with two halves":           {sealed(t, k, longVersion+1, plain(longSize, 10), public, shared), 0},
		"a key of low order, without secret": {sealed(t, k, codeVersion, plain(plainSize, 10), make([]byte, keySize), nil), 0},
		"a key of low order, with zeros":     {sealed(t, k, codeVersion, plain(plainSize, 10), make([]byte, keySize), make([]byte, 32)), 0},
	} {
		s, err := k.open(tt.code, time.Now())
		if tt.want == 0 && err == nil || tt.want != 0 && (err != nil || s.NameDigits != tt.want) {
			t.Errorf("%s: got %v, %v", name, s, err)
		}
	}
}

func TestARequestIsOfOneMachineAndDisk(t *testing.T) {
	k := newBoot(t)
	text := strings.Join(k.Request(), "\n")
	for name, in := range map[string]string{
		"lines": text, "one line": strings.ReplaceAll(text, "\n", " "), "slashes": strings.ReplaceAll(text, "\n", " / "), "lower case": strings.ToLower(text),
		"commas": strings.ReplaceAll(text, "\n", ","), "lines of Windows": strings.ReplaceAll(text, "\n", "\r\n"), "carriage returns": strings.ReplaceAll(text, "\n", "\r"),
		"as long as a text may be": text + strings.Repeat(" ", MaxText-len(text)),
	} {
		boot, err := ParseRequest(in, machine, disk)
		if err != nil || !bytes.Equal(boot, k.key.PublicKey().Bytes()) {
			t.Errorf("%s: %x, %v", name, boot, err)
		}
	}
	if _, err := ParseRequest(text, attest.MachineIDOf([]byte("other")), disk); !errors.Is(err, ErrOtherMachine) {
		t.Errorf("another machine: %v", err)
	}
	if _, err := ParseRequest(text, machine, "other"); !errors.Is(err, ErrOtherMachine) {
		t.Errorf("another disk: %v", err)
	}
	if _, err := ParseRequest(strings.Join(code(t, k, soon())[:4], "\n"), machine, disk); err == nil {
		t.Error("half a code was taken for a request")
	}
	// The version is not in the tag.
	later := append(append([]byte{requestVersion + 1}, k.key.PublicKey().Bytes()...), requestTag(k.key.PublicKey().Bytes(), machine, disk)...)
	if _, err := ParseRequest(strings.Join(encode(later), "\n"), machine, disk); err == nil || errors.Is(err, ErrOtherMachine) {
		t.Errorf("a request of a later version: %v", err)
	}
	for _, n := range []int{0, keySize - 1, keySize + 1} {
		if got := RequestOf(make([]byte, n), machine, disk); got != nil {
			t.Errorf("a key of %d bytes gives the request %q", n, got)
		}
	}
	low := append([]byte{requestVersion}, make([]byte, keySize)...)
	low = append(low, requestTag(make([]byte, keySize), machine, disk)...)
	boot, err := ParseRequest(strings.Join(encode(low), "\n"), machine, disk)
	if err == nil {
		_, err = Seal(boot, machine, disk, &Secrets{DiskKey: half(), NameDigits: 10}, soon())
	}
	if err == nil {
		t.Error("a code was made for a key of low order")
	}
}

// TestATypoInEachPlaceIsLocated puts every wrong symbol in every place.
func TestATypoInEachPlaceIsLocated(t *testing.T) {
	k := newBoot(t)
	for n, line := range code(t, k, soon()) {
		s, err := symbols(line)
		if err != nil {
			t.Fatal(err)
		}
		for place := range s {
			for wrong := range byte(32) {
				if wrong == s[place] {
					continue
				}
				typed := bytes.Clone(s)
				typed[place] = wrong
				r := &Reader{key: k}
				for i := range n {
					r.lines[i] = make([]byte, dataSize)
				}
				_, _, err := r.Line(show(typed), time.Now())
				var typo *TypoError
				if !errors.As(err, &typo) || typo.Line != n+1 || typo.Group != place/groupSize+1 {
					t.Fatalf("line %d, place %d, %c: got %v", n+1, place, alphabet[wrong], err)
				}
			}
		}
	}
}

func TestTwoWrongSymbolsAreAlwaysFound(t *testing.T) {
	s, err := symbols(code(t, newBoot(t), soon())[0])
	if err != nil {
		t.Fatal(err)
	}
	for i := range s {
		for j := range i {
			for a := byte(1); a < 32; a++ {
				for b := byte(1); b < 32; b++ {
					c := bytes.Clone(s)
					c[i] ^= a
					c[j] ^= b
					if s0, s1 := syndromes(c, 1); s0 == 0 && s1 == 0 {
						t.Fatalf("places %d and %d", i, j)
					}
				}
			}
			c := bytes.Clone(s)
			c[i], c[j] = c[j], c[i]
			if s0, s1 := syndromes(c, 1); s[i] != s[j] && s0 == 0 && s1 == 0 {
				t.Fatalf("places %d and %d can be swapped", i, j)
			}
		}
	}
	for n := 2; n <= LongLines; n++ {
		if s0, s1 := syndromes(s, n); s0 == 0 && s1 == 0 {
			t.Errorf("line 1 passes for line %d", n)
		}
	}
}

func TestBadTextIsSaidToBeSo(t *testing.T) {
	k := newBoot(t)
	lines := k.Request()
	swapped := []string{lines[1], lines[0], lines[2], lines[3]}
	for name, tt := range map[string]struct{ text, want string }{
		"nothing":                    {"", "it has 0 lines"},
		"a line short":               {strings.Join(lines[:3], "\n"), "it has 3 lines, want 4"},
		"a symbol short":             {strings.Join(lines, " ")[1:], "it has 79 characters, want 80"},
		"a line too short":           {lines[0][1:] + "\n" + strings.Join(lines[1:], "\n"), "line 1: it has 19 characters"},
		"swapped lines":              {strings.Join(swapped, "\n"), "line 1: it is line 2"},
		"one line, not the alphabet": {"ü" + strings.Join(lines, " ")[1:], `'Ü' is not used`},
		"not the alphabet":           {"ü" + strings.Join(lines, "\n")[1:], `line 1: 'Ü' is not used`},
		"much too long":              {strings.Repeat("0", MaxText+1), "it has 1025 bytes, at most 1024"},
	} {
		var typo *TypoError
		if _, err := ParseRequest(tt.text, machine, disk); !errors.As(err, &typo) || !strings.Contains(err.Error(), "recovery request: "+tt.want) {
			t.Errorf("%s: got %v, want %q", name, err, tt.want)
		}
	}
	r := k.Reader()
	if _, _, err := r.Line(strings.Repeat("0", MaxText+1), time.Now()); err == nil || err.Error() != "a line of 1025 bytes" {
		t.Errorf("an endless line: %v", err)
	}
	for text, want := range map[string]string{
		"100: " + lines[0]: `line 1: ':' is not used`, "AB: " + lines[0]: `line 1: ':' is not used`, ": " + lines[0]: `line 1: ':' is not used`,
	} {
		if _, _, err := r.Line(text, time.Now()); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: got %v, want %q", text, err, want)
		}
	}
	if len(r.Missing()) != CodeLines {
		t.Errorf("missing: %v", r.Missing())
	}
}

func TestSecretsArePrintedNowhere(t *testing.T) {
	k := newBoot(t)
	c, err := Seal(k.key.PublicKey().Bytes(), machine, disk, &Secrets{DiskKey: half(), NameDigits: 10}, soon())
	if err != nil {
		t.Fatal(err)
	}
	if out := fmt.Sprintf("%v %+v %s", c, &Secrets{DiskKey: half()}, c); strings.Contains(out, "[7 7") || !strings.Contains(out, "REDACTED") {
		t.Errorf("got %s", out)
	}
}

func TestSealRefuses(t *testing.T) {
	boot := newBoot(t).key.PublicKey().Bytes()
	end := time.Unix(1<<(8*timeSize)-1, 0)
	for name, tt := range map[string]struct {
		boot    []byte
		half    attest.Secret
		digits  int
		expires time.Time
		ok      bool
	}{
		"a short half":           {boot, half()[1:], 10, soon(), false},
		"no name":                {boot, half(), 0, soon(), false},
		"a name of one digit":    {boot, half(), 1, soon(), true},
		"a name of all digits":   {boot, half(), 64, soon(), true},
		"a name of more":         {boot, half(), 65, soon(), false},
		"a short key":            {boot[1:], half(), 10, soon(), false},
		"before 1970":            {boot, half(), 10, time.Unix(-1, 0), false},
		"1970":                   {boot, half(), 10, time.Unix(0, 0), true},
		"the last time it holds": {boot, half(), 10, end, true},
		"a second later":         {boot, half(), 10, end.Add(time.Second), false},
	} {
		if _, err := Seal(tt.boot, machine, disk, &Secrets{DiskKey: tt.half, NameDigits: tt.digits}, tt.expires); (err == nil) != tt.ok {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestTheFieldIsAField: the tables of the Reed-Solomon code, against the
// definition.
func TestTheFieldIsAField(t *testing.T) {
	seen := map[byte]bool{}
	for n := range 31 {
		if seen[power(n)] {
			t.Fatalf("2 to the %d was there before", n)
		}
		seen[power(n)] = true
	}
	for a := byte(1); a < 32; a++ {
		if multiply(a, inverse(a)) != 1 {
			t.Errorf("%d has no inverse", a)
		}
	}
}

func FuzzReader(f *testing.F) {
	k, err := NewBootKey(machine, disk)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(strings.Join(code(f, k, soon()), "\n"))
	f.Add("1: 00000 00000 00000 00000")
	f.Add("\x00\xff\n\n::)")
	f.Fuzz(func(t *testing.T, text string) {
		r := newBoot(t).Reader()
		for l := range strings.SplitSeq(text, "\n") {
			if _, s, _ := r.Line(l, time.Now()); s != nil {
				t.Fatal("a code opened that was made for another boot")
			}
		}
		if boot, err := ParseRequest(text, machine, disk); err == nil {
			if _, err := ecdh.X25519().NewPublicKey(boot); err != nil {
				t.Error(err)
			}
		}
	})
}

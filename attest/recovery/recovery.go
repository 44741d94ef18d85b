// Package recovery is how a machine gets the service's half of its disk key
// without a network, by what two people read to each other.
//
// A machine that gets no release makes a BootKey in memory, which shows a
// request: the public half of an ephemeral X25519 key (RFC 7748), bound to the
// machine and its disk. Where the service is, ParseRequest reads it and Seal
// answers with a code: the service's half of the disk key under AES-256-GCM
// with a key from both ephemeral keys. A Reader takes the code from a console,
// and opens it with the BootKey, which no other boot has.
//
// The code proves nothing of who made it: whoever knows the request can make
// one, with a half of their own choice. It opens no disk, and a machine must
// not make one with it. Nor does the request prove who shows it. A code gives
// one half of the key; the other is sealed in the machine's TPM for signed
// images.
package recovery

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/ecdh"
	"crypto/hkdf"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/sealift/sealift/attest"
)

const (
	// RequestLines and CodeLines are how many lines each text has, LongLines
	// those of a code while the machine's disk key is being changed.
	RequestLines = 4
	CodeLines    = 8
	LongLines    = 12
	// MaxText bounds a request or a code as it is typed, bytes.
	MaxText = 1024

	requestVersion = 1    // first byte of a request
	codeVersion    = 0x81 // first byte of a code
	longVersion    = 0x82 // of one with two halves
	keySize        = 32   // X25519
	tagSize        = 12   // of a request
	halfSize       = 32   // of a disk key
	plainSize      = halfSize + 4
	longSize       = 2*halfSize + 17
	timeSize       = 5
	requestSize    = 1 + keySize + tagSize
	codeSize       = 1 + keySize + timeSize + 16 // and the plaintext
)

// Secrets are what a code holds.
type Secrets struct {
	DiskKey attest.Secret // the service's half of the disk key, 32 bytes
	// NextDiskKey is the half that the disk may be under already, while its key
	// is being changed, 32 bytes. Optional.
	NextDiskKey attest.Secret
	// NameDigits is how many digits of its id are in the machine's node name, 1
	// to 64: attest/api.NodeName.
	NameDigits int
}

// BootKey is the key of one boot of one machine. It lives in memory only.
type BootKey struct {
	key     *ecdh.PrivateKey
	machine attest.MachineID
	disk    string
}

// NewBootKey makes a key. disk is the GUID of the machine's disk in lower case.
func NewBootKey(machine attest.MachineID, disk string) (*BootKey, error) {
	k, err := ecdh.X25519().GenerateKey(rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("make a recovery key: %w", err)
	}
	return &BootKey{key: k, machine: machine, disk: disk}, nil
}

// Request returns the lines that the machine shows.
func (k *BootKey) Request() []string {
	return RequestOf(k.key.PublicKey().Bytes(), k.machine, k.disk)
}

// RequestOf returns the lines that a machine shows for the public key of its
// boot, 32 bytes, or nothing for what is no such key.
func RequestOf(bootKey []byte, machine attest.MachineID, disk string) []string {
	if len(bootKey) != keySize {
		return nil
	}
	b := append([]byte{requestVersion}, bootKey...)
	return encode(append(b, requestTag(bootKey, machine, disk)...))
}

// digest is SHA-256 over fields, each with its length.
func digest(fields ...[]byte) []byte {
	h := sha256.New()
	for _, f := range fields {
		fmt.Fprintf(h, "%d:", len(f))
		h.Write(f)
	}
	return h.Sum(nil)
}

// requestTag says whose request it is. It authenticates nothing.
func requestTag(public []byte, machine attest.MachineID, disk string) []byte {
	return digest([]byte("sealift recovery request v1"), public, machine[:], []byte(disk))[:tagSize]
}

// ErrOtherMachine: a request is of another machine or of another disk.
var ErrOtherMachine = errors.New("the request is not of this machine and its disk")

// ParseRequest reads a request of a machine with a disk and returns the public
// key of its boot. The text may have its lines in one. A *TypoError says where
// it is wrong.
func ParseRequest(text string, machine attest.MachineID, disk string) (bootKey []byte, err error) {
	b, err := parse(text, RequestLines)
	if err != nil {
		return nil, fmt.Errorf("recovery request: %w", err)
	}
	if len(b) != requestSize || b[0] != requestVersion {
		return nil, fmt.Errorf("recovery request: version %d, want %d: it may be a code and not a request", b[0], requestVersion)
	}
	bootKey = b[1 : 1+keySize]
	if !hmac.Equal(b[1+keySize:], requestTag(bootKey, machine, disk)) {
		return nil, fmt.Errorf("recovery request: %w", ErrOtherMachine)
	}
	if _, err := ecdh.X25519().NewPublicKey(bootKey); err != nil {
		return nil, fmt.Errorf("recovery request: %w", err)
	}
	return bootKey, nil
}

// parse reads a text of so many lines, in their order. Line breaks are optional.
func parse(text string, lines int) ([]byte, error) {
	if len(text) > MaxText {
		return nil, &TypoError{Text: fmt.Sprintf("it has %d bytes, at most %d allowed", len(text), MaxText)}
	}
	parts := strings.FieldsFunc(text, func(r rune) bool { return r == '\n' || r == '\r' || r == '/' || r == ',' })
	if len(parts) == 1 {
		s, err := symbols(text)
		if err != nil {
			return nil, &TypoError{Text: err.Error()}
		}
		if len(s) != lines*lineSize {
			return nil, &TypoError{Text: fmt.Sprintf("it has %d characters, want %d: %d lines of %d groups", len(s), lines*lineSize, lines, lineSize/groupSize)}
		}
		parts = nil
		for i := range lines {
			parts = append(parts, show(s[i*lineSize:(i+1)*lineSize]))
		}
	}
	if len(parts) != lines {
		return nil, &TypoError{Text: fmt.Sprintf("it has %d lines, want %d", len(parts), lines)}
	}
	var data [][]byte
	for i, p := range parts {
		n, d, err := decodeLine(p, lines, i+1)
		if err != nil {
			return nil, err
		}
		if n != i+1 {
			return nil, &TypoError{Line: i + 1, Text: fmt.Sprintf("it is line %d", n)}
		}
		data = append(data, d)
	}
	return join(data), nil
}

// sealer returns the AEAD between two ephemeral keys. Each is used once, so the
// nonce is zero.
func sealer(shared, bootKey, serviceKey []byte) (cipher.AEAD, error) {
	salt := append(append([]byte{}, bootKey...), serviceKey...)
	key, err := hkdf.Key(sha256.New, shared, salt, "sealift recovery code v1", 32)
	if err != nil {
		return nil, err
	}
	defer clear(key)
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, err
	}
	return cipher.NewGCM(block)
}

// additional is what a code is bound to.
func additional(version byte, machine attest.MachineID, disk string, bootKey, serviceKey, expires []byte) []byte {
	return digest([]byte("sealift recovery code v1"), []byte{version}, machine[:], []byte(disk), bootKey, serviceKey, expires)
}

// Seal makes the code for a boot, its lines joined by line feeds. bootKey comes
// from ParseRequest. expires, in whole seconds, is part of what the code is
// bound to.
func Seal(bootKey []byte, machine attest.MachineID, disk string, s *Secrets, expires time.Time) (attest.Secret, error) {
	if n := len(s.NextDiskKey); len(s.DiskKey) != halfSize || n != 0 && n != halfSize || s.NameDigits < 1 || s.NameDigits > 64 {
		return nil, fmt.Errorf("make a recovery code: the halves have %d and %d bytes, want %d, or %d digits are not 1 to 64", len(s.DiskKey), n, halfSize, s.NameDigits)
	}
	unix := expires.Unix()
	if unix < 0 || unix >= 1<<(8*timeSize) {
		return nil, fmt.Errorf("make a recovery code: it would expire at %s", expires)
	}
	peer, err := ecdh.X25519().NewPublicKey(bootKey)
	if err != nil {
		return nil, fmt.Errorf("make a recovery code: %w", err)
	}
	key, err := ecdh.X25519().GenerateKey(rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("make a recovery code: %w", err)
	}
	shared, err := key.ECDH(peer) // refuses keys of low order
	if err != nil {
		return nil, fmt.Errorf("make a recovery code: %w", err)
	}
	defer clear(shared)
	serviceKey := key.PublicKey().Bytes()
	aead, err := sealer(shared, bootKey, serviceKey)
	if err != nil {
		return nil, fmt.Errorf("make a recovery code: %w", err)
	}
	version, size := byte(codeVersion), plainSize
	if s.NextDiskKey != nil {
		version, size = longVersion, longSize
	}
	plain := make([]byte, size) // half, digits, next half, zeros
	defer clear(plain)
	copy(plain, s.DiskKey)
	plain[halfSize] = byte(s.NameDigits)
	copy(plain[halfSize+1:], s.NextDiskKey)
	at := binary.BigEndian.AppendUint64(nil, uint64(unix))[8-timeSize:]
	b := append([]byte{version}, serviceKey...)
	b = append(b, at...)
	b = aead.Seal(b, make([]byte, aead.NonceSize()), plain, additional(version, machine, disk, bootKey, serviceKey, at))
	return attest.Secret(strings.Join(encode(b), "\n")), nil
}

// ErrOtherBoot: a code is for another boot, machine or disk, or was altered.
var ErrOtherBoot = errors.New("the code is not for this request: it is of another machine, or the machine has made a new request since")

// ExpiredError: a code's time was over by the clock of the machine.
type ExpiredError struct{ Expires, Now time.Time }

func (e *ExpiredError) Error() string {
	return fmt.Sprintf("the code was good until %s, and this machine's clock says %s", e.Expires.UTC().Format(time.RFC3339), e.Now.UTC().Format(time.RFC3339))
}

// open decrypts the bytes of a code.
func (k *BootKey) open(b []byte, now time.Time) (*Secrets, error) {
	short := len(b) == codeSize+plainSize && b[0] == codeVersion
	if !short && (len(b) != codeSize+longSize || b[0] != longVersion) {
		return nil, errors.New("this is no recovery code: it may be a request")
	}
	serviceKey, at, box := b[1:1+keySize], b[1+keySize:1+keySize+timeSize], b[1+keySize+timeSize:]
	peer, err := ecdh.X25519().NewPublicKey(serviceKey)
	if err != nil {
		return nil, ErrOtherBoot
	}
	shared, err := k.key.ECDH(peer)
	if err != nil {
		return nil, ErrOtherBoot
	}
	defer clear(shared)
	bootKey := k.key.PublicKey().Bytes()
	aead, err := sealer(shared, bootKey, serviceKey)
	if err != nil {
		return nil, err
	}
	plain, err := aead.Open(nil, make([]byte, aead.NonceSize()), box, additional(b[0], k.machine, k.disk, bootKey, serviceKey, at))
	if err != nil {
		return nil, ErrOtherBoot
	}
	defer clear(plain)
	digits := int(plain[halfSize])
	if digits < 1 || digits > 64 {
		return nil, ErrOtherBoot
	}
	expires := time.Unix(int64(binary.BigEndian.Uint64(append(make([]byte, 8-timeSize), at...))), 0)
	if now.After(expires) {
		return nil, &ExpiredError{expires, now}
	}
	s := &Secrets{DiskKey: attest.Secret(append([]byte{}, plain[:halfSize]...)), NameDigits: digits}
	if !short {
		s.NextDiskKey = attest.Secret(append([]byte{}, plain[halfSize+1:2*halfSize+1]...))
	}
	return s, nil
}

// Reader puts the lines of a code together as they are typed, in any order.
// Make it with BootKey.Reader; it is used by one goroutine.
type Reader struct {
	key   *BootKey
	lines [LongLines][]byte // data of each; nil: not there
}

// Reader returns a Reader for codes to this boot.
func (k *BootKey) Reader() *Reader { return &Reader{key: k} }

// total is how many lines the code has, as far as its first line says it.
func (r *Reader) total() int {
	if first := r.lines[0]; first != nil && first[0]<<3|first[1]>>2 == longVersion {
		return LongLines
	}
	return CodeLines
}

// Missing returns the numbers of the lines that are not there, in order. How
// many there are is known once the first is there.
func (r *Reader) Missing() []int {
	var out []int
	for i, l := range r.lines[:r.total()] {
		if l == nil {
			out = append(out, i+1)
		}
	}
	return out
}

// Line takes one line. It returns its number, and the secrets once all lines
// are there and open with the key of this boot. After a code that does not open
// all lines are forgotten. A *TypoError says where a line is wrong. A machine's
// clock may be wrong, so the caller forgets the BootKey after its time, too.
func (r *Reader) Line(text string, now time.Time) (number int, s *Secrets, err error) {
	if len(text) > MaxText {
		return 0, nil, &TypoError{Text: fmt.Sprintf("a line of %d bytes", len(text))}
	}
	expected := r.total()
	if m := r.Missing(); len(m) > 0 {
		expected = m[0]
	}
	number, data, err := decodeLine(text, LongLines, expected)
	if err != nil {
		return 0, nil, err
	}
	r.lines[number-1] = data
	if len(r.Missing()) > 0 {
		return number, nil, nil
	}
	b := join(r.lines[:r.total()])
	defer clear(b)
	r.lines = [LongLines][]byte{}
	s, err = r.key.open(b, now)
	return number, s, err
}

package luks2

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
)

// What this package writes, and all that it accepts.
const (
	cipher        = "aes-xts-plain64"
	keySize       = 64 // of the volume key and of the key area's key, bytes
	sectorSize    = 4096
	stripes       = 4000
	hashName      = "sha256"
	saltSize      = 32
	minIterations = 1000       // LUKS2 spec's and cryptsetup's minimum for PBKDF2
	maxIterations = 10_000_000 // a few seconds; bounds what a forged header can cost
	maxTokens     = 32
)

// metadata is the JSON document (LUKS2 On-Disk Format Specification, 3).
// Fields that it does not name are refused.
type metadata struct {
	Keyslots map[string]keyslot         `json:"keyslots"`
	Tokens   map[string]json.RawMessage `json:"tokens"`
	Segments map[string]segment         `json:"segments"`
	Digests  map[string]digest          `json:"digests"`
	Config   config                     `json:"config"`
}

type keyslot struct {
	Type     string `json:"type"`
	KeySize  int    `json:"key_size"`
	AF       af     `json:"af"`
	Area     area   `json:"area"`
	KDF      kdf    `json:"kdf"`
	Priority *int   `json:"priority,omitempty"`
}

type af struct {
	Type    string `json:"type"`
	Stripes int    `json:"stripes"`
	Hash    string `json:"hash"`
}

type area struct {
	Type       string `json:"type"`
	Offset     int64  `json:"offset,string"`
	Size       int64  `json:"size,string"`
	Encryption string `json:"encryption"`
	KeySize    int    `json:"key_size"`
}

type kdf struct {
	Type       string `json:"type"`
	Hash       string `json:"hash"`
	Iterations int    `json:"iterations"`
	Salt       []byte `json:"salt"`
	// Of Argon2, which is refused; named so that the error can say so.
	Time   int `json:"time,omitempty"`
	Memory int `json:"memory,omitempty"`
	CPUs   int `json:"cpus,omitempty"`
}

type segment struct {
	Type       string `json:"type"`
	Offset     int64  `json:"offset,string"`
	Size       string `json:"size"` // "dynamic": to the end of the device
	IVTweak    uint64 `json:"iv_tweak,string"`
	Encryption string `json:"encryption"`
	SectorSize int    `json:"sector_size"`
}

type digest struct {
	Type       string   `json:"type"`
	Keyslots   []string `json:"keyslots"`
	Segments   []string `json:"segments"`
	Hash       string   `json:"hash"`
	Iterations int      `json:"iterations"`
	Salt       []byte   `json:"salt"`
	Digest     []byte   `json:"digest"`
}

type config struct {
	JSONSize     int64 `json:"json_size,string"`
	KeyslotsSize int64 `json:"keyslots_size,string"`
}

// UntrustedToken is a token as it lies in the header: nothing of it is
// authenticated, whoever can write to the disk can change it.
type UntrustedToken struct {
	ID   int
	Type string
	JSON json.RawMessage // the whole token object
}

// decodeMetadata reads the document strictly and refuses everything but the
// one shape that this package writes. The checks, each of which closes a way
// to open a forged header:
//   - exactly one keyslot, one segment and one digest, tied to each other;
//   - volume and key area encrypted with aes-xts-plain64 and 512-bit keys,
//     never cipher_null or a cipher without a key;
//   - one crypt segment up to the end of the device, no integrity, no
//     requirements, no flags;
//   - PBKDF2 with SHA-256 and a bounded number of iterations;
//   - the key area lies between the headers and the data.
func decodeMetadata(doc []byte) (*metadata, error) {
	d := json.NewDecoder(bytes.NewReader(doc))
	d.DisallowUnknownFields()
	var m metadata
	if err := d.Decode(&m); err != nil {
		return nil, fmt.Errorf("metadata: %w", err)
	}
	if _, err := d.Token(); err != io.EOF {
		return nil, errors.New("metadata: data behind the document")
	}
	if err := m.check(); err != nil {
		return nil, fmt.Errorf("metadata: %w", err)
	}
	return &m, nil
}

func (m *metadata) check() error {
	if len(m.Segments) != 1 || len(m.Keyslots) != 1 || len(m.Digests) != 1 {
		return fmt.Errorf("%d segments, %d keyslots and %d digests, want one of each", len(m.Segments), len(m.Keyslots), len(m.Digests))
	}
	s, ok := m.Segments["0"]
	if !ok {
		return errors.New("there is no segment 0")
	}
	k, ok := m.Keyslots["0"]
	if !ok {
		return errors.New("there is no keyslot 0")
	}
	d, ok := m.Digests["0"]
	if !ok {
		return errors.New("there is no digest 0")
	}
	if m.Config.JSONSize != jsonSize {
		return fmt.Errorf("config: json size is %d, want %d", m.Config.JSONSize, jsonSize)
	}
	if n := m.Config.KeyslotsSize; n < 0 || n > s.Offset-2*headerSize {
		return fmt.Errorf("config: keyslots size is %d, the data starts at %d", n, s.Offset)
	}
	if err := s.check(); err != nil {
		return fmt.Errorf("segment 0: %w", err)
	}
	if err := k.check(s.Offset); err != nil {
		return fmt.Errorf("keyslot 0: %w", err)
	}
	if err := d.check(); err != nil {
		return fmt.Errorf("digest 0: %w", err)
	}
	if _, err := m.tokens(); err != nil {
		return err
	}
	return nil
}

func (s segment) check() error {
	switch {
	case s.Type != "crypt":
		return fmt.Errorf("type is %q, want %q", s.Type, "crypt")
	case s.Encryption != cipher:
		return fmt.Errorf("cipher is %q, only %q is accepted", s.Encryption, cipher)
	case s.SectorSize != sectorSize:
		return fmt.Errorf("sector size is %d, want %d", s.SectorSize, sectorSize)
	case s.IVTweak != 0:
		return fmt.Errorf("iv tweak is %d, want 0", s.IVTweak)
	case s.Size != "dynamic":
		return fmt.Errorf("size is %q, want %q", s.Size, "dynamic")
	case s.Offset < 2*headerSize || s.Offset%sectorSize != 0:
		return fmt.Errorf("offset %d is inside the headers or not a multiple of %d", s.Offset, sectorSize)
	}
	return nil
}

func (k keyslot) check(dataStart int64) error {
	switch {
	case k.Type != "luks2":
		return fmt.Errorf("type is %q, want %q", k.Type, "luks2")
	case k.KeySize != keySize:
		return fmt.Errorf("volume key has %d bytes, want %d", k.KeySize, keySize)
	case k.AF.Type != "luks1" || k.AF.Hash != hashName || k.AF.Stripes != stripes:
		return fmt.Errorf("anti-forensic splitter is %s with %q and %d stripes, want luks1 with %q and %d", k.AF.Type, k.AF.Hash, k.AF.Stripes, hashName, stripes)
	case k.Area.Type != "raw":
		return fmt.Errorf("area type is %q, want %q", k.Area.Type, "raw")
	case k.Area.Encryption != cipher || k.Area.KeySize != keySize:
		return fmt.Errorf("area is encrypted with %q and a key of %d bytes, only %q and %d are accepted", k.Area.Encryption, k.Area.KeySize, cipher, keySize)
	case k.Area.Size < stripes*keySize || k.Area.Size > dataOffset:
		return fmt.Errorf("area has %d bytes, want %d to %d", k.Area.Size, stripes*keySize, dataOffset)
	case k.Area.Offset < 2*headerSize || k.Area.Offset%sectorSize != 0 || k.Area.Offset > dataStart-k.Area.Size:
		return fmt.Errorf("area of %d bytes at %d is not between the headers and the data at %d", k.Area.Size, k.Area.Offset, dataStart)
	case k.KDF.Type != "pbkdf2":
		return fmt.Errorf("key derivation is %q, only %q is accepted", k.KDF.Type, "pbkdf2")
	}
	return checkPBKDF2(k.KDF.Hash, k.KDF.Iterations, k.KDF.Salt)
}

func (d digest) check() error {
	switch {
	case d.Type != "pbkdf2":
		return fmt.Errorf("type is %q, want %q", d.Type, "pbkdf2")
	case !slices.Equal(d.Keyslots, []string{"0"}) || !slices.Equal(d.Segments, []string{"0"}):
		return fmt.Errorf("it is of keyslots %q and segments %q, want 0 and 0", d.Keyslots, d.Segments)
	case len(d.Digest) != 32:
		return fmt.Errorf("it has %d bytes, want 32", len(d.Digest))
	}
	return checkPBKDF2(d.Hash, d.Iterations, d.Salt)
}

func checkPBKDF2(hash string, iterations int, salt []byte) error {
	switch {
	case hash != hashName:
		return fmt.Errorf("pbkdf2 hash is %q, want %q", hash, hashName)
	case iterations < minIterations || iterations > maxIterations:
		return fmt.Errorf("pbkdf2 has %d iterations, want %d to %d", iterations, minIterations, maxIterations)
	case len(salt) != saltSize:
		return fmt.Errorf("pbkdf2 salt has %d bytes, want %d", len(salt), saltSize)
	}
	return nil
}

// tokens returns the tokens in the order of their numbers.
func (m *metadata) tokens() ([]UntrustedToken, error) {
	if len(m.Tokens) > maxTokens {
		return nil, fmt.Errorf("%d tokens, at most %d allowed", len(m.Tokens), maxTokens)
	}
	var ts []UntrustedToken
	for id, raw := range m.Tokens {
		n, err := strconv.Atoi(id)
		if err != nil || n < 0 || n >= maxTokens || strconv.Itoa(n) != id {
			return nil, fmt.Errorf("token %q: not a number from 0 to %d", id, maxTokens-1)
		}
		typ, err := tokenType(raw)
		if err != nil {
			return nil, fmt.Errorf("token %s: %w", id, err)
		}
		ts = append(ts, UntrustedToken{ID: n, Type: typ, JSON: raw})
	}
	slices.SortFunc(ts, func(a, b UntrustedToken) int { return a.ID - b.ID })
	return ts, nil
}

// tokenType checks the two fields that every token must have.
func tokenType(raw json.RawMessage) (string, error) {
	var t struct {
		Type     string    `json:"type"`
		Keyslots *[]string `json:"keyslots"`
	}
	if err := json.Unmarshal(raw, &t); err != nil {
		return "", err
	}
	if t.Type == "" || len(t.Type) > 64 || t.Keyslots == nil {
		return "", errors.New(`it lacks "type" or "keyslots"`)
	}
	if extra := slices.DeleteFunc(slices.Clone(*t.Keyslots), func(s string) bool { return s == "0" }); len(extra) > 0 {
		return "", fmt.Errorf("it names keyslots that do not exist: %s", strings.Join(extra, ", "))
	}
	return t.Type, nil
}

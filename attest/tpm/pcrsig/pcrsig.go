// Package pcrsig makes and reads signed PCR policies: the statement of an
// image builder that a PCR may have a certain value, in the JSON format that
// systemd keeps in the .pcrsig section of a unified kernel image. A TPM object
// whose policy is TPM2_PolicyAuthorize of the builder's key opens in each
// state that the builder has signed, so that an update needs no resealing.
//
// Sign makes the file for a value of PCR 11 in each bank, Parse reads one, and
// PolicyDigest is the policy that is signed: TPM2_PolicyPCR (TPM 2.0 Library
// Part 3, 23.7) over PCRs of one bank in a SHA-256 session. The banks are SHA-256
// and, for machines on which that is off, SHA-384. The package does no I/O.
package pcrsig

import (
	"bytes"
	"crypto"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
)

// KernelPCR is the PCR into which systemd-stub measures a unified kernel
// image, and the only one that Sign makes policies for.
const KernelPCR = 11

// Limits of a file that Parse accepts.
const (
	MaxSize    = 64 << 10 // bytes
	MaxEntries = 64       // in each bank
	maxPCR     = 23
)

const (
	commandPolicyPCR = 0x0000017f // TPM_CC_PolicyPCR, Part 2, 6.5.2
)

// bankAlg returns the id (Part 2, 6.3) and the digest's size, bytes, of a bank
// that policies are made for.
func bankAlg(bank string) (alg uint16, size int, err error) {
	switch bank {
	case "sha256":
		return 0x000b, 32, nil
	case "sha384":
		return 0x000c, 48, nil
	}
	return 0, 0, fmt.Errorf("bank is %.20q, want sha256 or sha384", bank)
}

// Entry is one signed policy for PCRs of the SHA-256 or the SHA-384 bank. It
// proves nothing until Verify has accepted it.
type Entry struct {
	Bank      string   // sha256 or sha384
	PCRs      []int    // ascending, without duplicates
	KeyID     [32]byte // SHA-256 of the PKCS #1 form of the signer's RSA key
	Policy    [32]byte // PolicyDigest of the PCRs in the state that is allowed
	Signature []byte   // RSASSA-PKCS1-v1_5 with SHA-256 over Policy
}

// fileEntry is an Entry as it stands in the file. The order of the fields is
// the one that systemd-measure writes.
type fileEntry struct {
	PCRs      []int  `json:"pcrs"`
	KeyID     string `json:"pkfp"`
	Policy    string `json:"pol"`
	Signature string `json:"sig"`
}

// PolicyDigest returns the digest of TPM2_PolicyPCR for a state in which PCRs
// of a bank, sha256 or sha384, have the given values by their index.
func PolicyDigest(bank string, pcrs map[int][]byte) ([]byte, error) {
	alg, size, err := bankAlg(bank)
	if err != nil {
		return nil, fmt.Errorf("pcr policy: %w", err)
	}
	if len(pcrs) == 0 {
		return nil, errors.New("pcr policy: no PCR is selected")
	}
	var bitmap [(maxPCR + 1) / 8]byte
	values := sha256.New()
	for _, i := range slices.Sorted(maps.Keys(pcrs)) {
		if i < 0 || i > maxPCR {
			return nil, fmt.Errorf("pcr policy: PCR %d: want 0 to %d", i, maxPCR)
		}
		if len(pcrs[i]) != size {
			return nil, fmt.Errorf("pcr policy: PCR %d: got a value of %d bytes, want %d in bank %s", i, len(pcrs[i]), size, bank)
		}
		bitmap[i/8] |= 1 << (i % 8)
		values.Write(pcrs[i])
	}
	b := make([]byte, sha256.Size) // the digest of the empty policy
	b = binary.BigEndian.AppendUint32(b, commandPolicyPCR)
	b = binary.BigEndian.AppendUint32(b, 1) // TPML_PCR_SELECTION: count, then hash, size, bitmap
	b = binary.BigEndian.AppendUint16(b, alg)
	b = append(b, byte(len(bitmap)))
	b = append(b, bitmap[:]...)
	b = values.Sum(b)
	d := sha256.Sum256(b)
	return d[:], nil
}

// Sign returns the contents of a .pcrsig section that allows PCR 11 to have the
// values in pcr11, by the name of the bank: sha256, or sha256 and sha384. The
// same inputs give the same bytes. The key has 2048 bits, the size that every
// TPM can verify with.
func Sign(key *rsa.PrivateKey, pcr11 map[string][]byte) ([]byte, error) {
	if key.N.BitLen() != 2048 {
		return nil, fmt.Errorf("sign pcr policy: got an RSA key of %d bits, want 2048", key.N.BitLen())
	}
	if len(pcr11) == 0 {
		return nil, errors.New("sign pcr policy: no bank is named")
	}
	file := map[string][]fileEntry{}
	id := KeyID(&key.PublicKey)
	for bank, value := range pcr11 {
		policy, err := PolicyDigest(bank, map[int][]byte{KernelPCR: value})
		if err != nil {
			return nil, fmt.Errorf("sign pcr policy: %w", err)
		}
		// PolicyAuthorize takes a signature over H(approvedPolicy || policyRef)
		// (Part 3, 23.16), here with an empty policyRef.
		digest := sha256.Sum256(policy)
		sig, err := rsa.SignPKCS1v15(nil, key, crypto.SHA256, digest[:])
		if err != nil {
			return nil, fmt.Errorf("sign pcr policy: %w", err)
		}
		file[bank] = []fileEntry{{
			PCRs:      []int{KernelPCR},
			KeyID:     hex.EncodeToString(id[:]),
			Policy:    hex.EncodeToString(policy),
			Signature: base64.StdEncoding.EncodeToString(sig),
		}}
	}
	return json.Marshal(file)
}

// KeyID returns the name of a key in a .pcrsig file: the SHA-256 of its
// PKCS #1 form.
func KeyID(key *rsa.PublicKey) [32]byte { return sha256.Sum256(x509.MarshalPKCS1PublicKey(key)) }

// Verify checks that key has signed the policy of e.
func (e Entry) Verify(key *rsa.PublicKey) error {
	digest := sha256.Sum256(e.Policy[:])
	if err := rsa.VerifyPKCS1v15(key, crypto.SHA256, digest[:], e.Signature); err != nil {
		return fmt.Errorf("signature of pcr policy %x: %w", e.Policy, err)
	}
	return nil
}

// Parse reads a .pcrsig file and returns the entries of its SHA-256 and SHA-384
// banks, in this order, which may be none. Entries of other banks must be
// well-formed, too.
func Parse(file []byte) ([]Entry, error) {
	if len(file) > MaxSize {
		return nil, fmt.Errorf("pcr signatures: got %d bytes, want at most %d", len(file), MaxSize)
	}
	// The section of an image may be padded with zeros.
	d := json.NewDecoder(bytes.NewReader(bytes.TrimRight(file, "\x00")))
	d.DisallowUnknownFields()
	var banks map[string][]fileEntry
	if err := d.Decode(&banks); err != nil {
		return nil, fmt.Errorf("pcr signatures: %w", err)
	}
	if _, err := d.Token(); err != io.EOF {
		return nil, errors.New("pcr signatures: text after the end of the JSON value")
	}
	var entries []Entry
	for _, bank := range slices.Sorted(maps.Keys(banks)) {
		switch bank {
		case "sha1", "sha256", "sha384", "sha512":
		default:
			return nil, fmt.Errorf("pcr signatures: bank %.20q: want sha1, sha256, sha384 or sha512", bank)
		}
		if n := len(banks[bank]); n > MaxEntries {
			return nil, fmt.Errorf("pcr signatures: bank %s: got %d entries, want at most %d", bank, n, MaxEntries)
		}
		for i, f := range banks[bank] {
			e, err := f.parse()
			if err != nil {
				return nil, fmt.Errorf("pcr signatures: bank %s, entry %d: %w", bank, i, err)
			}
			if _, _, err := bankAlg(bank); err == nil {
				e.Bank = bank
				entries = append(entries, e)
			}
		}
	}
	return entries, nil
}

func (f fileEntry) parse() (Entry, error) {
	e := Entry{PCRs: f.PCRs}
	if len(f.PCRs) == 0 {
		return e, errors.New("no PCR is selected")
	}
	for i, p := range f.PCRs {
		if p < 0 || p > maxPCR {
			return e, fmt.Errorf("PCR %d: want 0 to %d", p, maxPCR)
		}
		if i > 0 && p <= f.PCRs[i-1] {
			return e, fmt.Errorf("PCR %d after PCR %d: want ascending order", p, f.PCRs[i-1])
		}
	}
	for _, field := range []struct {
		name, hex string
		to        []byte
	}{{"pkfp", f.KeyID, e.KeyID[:]}, {"pol", f.Policy, e.Policy[:]}} {
		b, err := hex.DecodeString(field.hex)
		if err != nil {
			return e, fmt.Errorf("%s: %w", field.name, err)
		}
		if copy(field.to, b) != len(b) || len(b) != len(field.to) {
			return e, fmt.Errorf("%s: got %d bytes, want %d", field.name, len(b), len(field.to))
		}
	}
	var err error
	if e.Signature, err = base64.StdEncoding.DecodeString(f.Signature); err != nil {
		return e, fmt.Errorf("sig: %w", err)
	}
	if n := len(e.Signature); n < 128 || n > 1024 {
		return e, fmt.Errorf("sig: got %d bytes, want 128 to 1024", n)
	}
	return e, nil
}

// ParseKey reads the builder's public key as the .pcrpkey section has it: an
// RSA key of 2048 bits with the exponent 65537, PEM with the type PUBLIC KEY.
func ParseKey(file []byte) (*rsa.PublicKey, error) {
	if len(file) > MaxSize {
		return nil, fmt.Errorf("pcr key: got %d bytes, want at most %d", len(file), MaxSize)
	}
	block, rest := pem.Decode(file)
	if block == nil || block.Type != "PUBLIC KEY" {
		return nil, errors.New("pcr key: not a PEM file of the type PUBLIC KEY")
	}
	if len(bytes.Trim(rest, "\x00\r\n ")) > 0 {
		return nil, fmt.Errorf("pcr key: %d bytes after the end of the key", len(rest))
	}
	pub, err := x509.ParsePKIXPublicKey(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("pcr key: %w", err)
	}
	key, ok := pub.(*rsa.PublicKey)
	if !ok {
		return nil, fmt.Errorf("pcr key: got a %T, want an RSA key", pub)
	}
	if key.N.BitLen() != 2048 || key.E != 65537 {
		return nil, fmt.Errorf("pcr key: got %d bits and exponent %d, want 2048 bits and exponent 65537", key.N.BitLen(), key.E)
	}
	return key, nil
}

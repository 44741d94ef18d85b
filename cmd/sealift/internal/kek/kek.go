// Package kek keeps the key-encryption key under which the attestation service
// stores disk keys: in a file, or in a file that only a key management service
// or a token can decrypt. Source.Open gives the key, Init and Wrap make one.
//
// The key itself is 32 bytes that we made: a service that could only encrypt
// and decrypt for us would have to be asked for each release. It is asked once,
// when the attestation service starts.
package kek

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/subtle"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"github.com/sealift/sealift/attest"
	"github.com/sealift/sealift/attest/server"
)

// maxFile bounds a key file, in bytes.
const maxFile = 64 << 10

// patience bounds how long a key management service may take.
const patience = 30 * time.Second

// Source says where a key-encryption key is: File, or URI and Wrapped.
type Source struct {
	File string `yaml:"file"` // 32 bytes in hex, mode 0600

	URI     string `yaml:"uri"`     // of the key that decrypts Wrapped
	Wrapped string `yaml:"wrapped"` // file that Wrap made, mode 0600
}

// Check says what is missing or too much.
func (s Source) Check() error {
	switch {
	case s == Source{}:
		return errors.New("want file, or uri and wrapped")
	case s.File != "" && (s.URI != "" || s.Wrapped != ""):
		return errors.New("file is given, and uri or wrapped too: want one of them")
	case s.File == "" && s.URI == "":
		return errors.New("uri is missing: it names the key that decrypts wrapped")
	case s.File == "" && s.Wrapped == "":
		return errors.New("wrapped is missing: it names the file with the encrypted key")
	}
	return nil
}

// Open returns the key. password is asked for the PIN of a token whose URI
// names no file for it; it may be nil.
func (s Source) Open(ctx context.Context, password func() ([]byte, error)) (attest.Secret, error) {
	if err := s.Check(); err != nil {
		return nil, fmt.Errorf("key-encryption key: %w", err)
	}
	if s.File != "" {
		return ReadFile(s.File)
	}
	w, err := readWrapped(s.Wrapped)
	if err != nil {
		return nil, err
	}
	key, err := w.open(ctx, s.URI, password)
	if err != nil {
		return nil, fmt.Errorf("wrapped key-encryption key %s: %w", s.Wrapped, err)
	}
	return key, nil
}

// ReadFile reads a key that is kept in a file of its own.
func ReadFile(path string) (attest.Secret, error) {
	b, err := readPrivate(path)
	if err != nil {
		return nil, err
	}
	defer clear(b)
	text := bytes.TrimSuffix(b, []byte("\n"))
	if len(text) != hex.EncodedLen(server.KEKSize) {
		return nil, fmt.Errorf("key-encryption key %s: got %d characters, want %d hex digits", path, len(text), hex.EncodedLen(server.KEKSize))
	}
	key := make(attest.Secret, server.KEKSize)
	if _, err := hex.Decode(key, text); err != nil {
		return nil, fmt.Errorf("key-encryption key %s: it is not hex", path)
	}
	return key, nil
}

// Init makes a key in a new file and returns its id. It never touches a file
// that exists.
func Init(path string) (id string, err error) {
	key, err := newKey()
	if err != nil {
		return "", err
	}
	defer clear(key)
	text := append(hex.AppendEncode(nil, key), '\n')
	defer clear(text)
	if err := writePrivate(path, text); err != nil {
		return "", err
	}
	return server.KEKID(key), nil
}

// Wrap writes a new file from which only the key management service that the
// URI names can have the key, and returns the key's id. Without a key it makes
// one. Nothing is written before the service has proven that it gives the key
// back.
func Wrap(ctx context.Context, path, uri string, key attest.Secret, password func() ([]byte, error)) (id string, err error) {
	if key == nil {
		if key, err = newKey(); err != nil {
			return "", err
		}
		defer clear(key)
	}
	w := &wrapped{Version: wrappedVersion, Type: wrappedType, ID: server.KEKID(key)}
	if err := w.seal(ctx, uri, key, password); err != nil {
		return "", fmt.Errorf("wrap key-encryption key %s: %w", w.ID, err)
	}
	back, err := w.open(ctx, uri, password)
	if err != nil {
		return "", fmt.Errorf("wrap key-encryption key %s: what was just encrypted does not open: %w", w.ID, err)
	}
	defer clear(back)
	if subtle.ConstantTimeCompare(key, back) != 1 {
		return "", fmt.Errorf("wrap key-encryption key %s: another key comes back than was encrypted", w.ID)
	}
	b, err := json.MarshalIndent(w, "", "  ")
	if err != nil {
		return "", fmt.Errorf("wrap key-encryption key %s: %w", w.ID, err)
	}
	if err := writePrivate(path, append(b, '\n')); err != nil {
		return "", err
	}
	return w.ID, nil
}

func newKey() (attest.Secret, error) {
	key := make(attest.Secret, server.KEKSize)
	if _, err := rand.Read(key); err != nil {
		return nil, fmt.Errorf("make a key-encryption key: %w", err)
	}
	return key, nil
}

// wrapped is a file that Wrap makes.
type wrapped struct {
	Version    int    `json:"version"`
	Type       string `json:"type"`
	ID         string `json:"id"` // of the key in it, server.KEKID
	Ciphertext []byte `json:"ciphertext"`
}

const (
	wrappedVersion = 1
	wrappedType    = "sealift wrapped key-encryption key"
)

func readWrapped(path string) (*wrapped, error) {
	b, err := readPrivate(path)
	if err != nil {
		return nil, err
	}
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	w := new(wrapped)
	if err := d.Decode(w); err != nil {
		return nil, fmt.Errorf("wrapped key-encryption key %s: %w", path, err)
	}
	if _, err := d.Token(); err != io.EOF {
		return nil, fmt.Errorf("wrapped key-encryption key %s: data after the document", path)
	}
	switch {
	case w.Type != wrappedType || w.Version != wrappedVersion:
		return nil, fmt.Errorf("wrapped key-encryption key %s: it is %.60q of version %d, want %q of version %d", path, w.Type, w.Version, wrappedType, wrappedVersion)
	case w.ID == "" || len(w.Ciphertext) == 0:
		return nil, fmt.Errorf("wrapped key-encryption key %s: id or ciphertext is missing", path)
	}
	return w, nil
}

func (w *wrapped) seal(ctx context.Context, uri string, key attest.Secret, password func() ([]byte, error)) (err error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	c, err := openCipher(ctx, uri, password)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, c.Close()) }()
	if w.Ciphertext, err = c.Encrypt(ctx, key); err != nil {
		return fmt.Errorf("encrypt with %s: %w", redacted(uri), err)
	}
	return nil
}

// open has the service decrypt the key, and holds that it is the one of the
// file's id: a service can answer with anything.
func (w *wrapped) open(ctx context.Context, uri string, password func() ([]byte, error)) (_ attest.Secret, err error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	c, err := openCipher(ctx, uri, password)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, c.Close()) }()
	b, err := c.Decrypt(ctx, w.Ciphertext)
	if err != nil {
		return nil, fmt.Errorf("decrypt with %s: %w", redacted(uri), err)
	}
	key := attest.Secret(b)
	if len(key) != server.KEKSize {
		clear(key)
		return nil, fmt.Errorf("decrypt with %s: got %d bytes, want %d", redacted(uri), len(key), server.KEKSize)
	}
	if id := server.KEKID(key); id != w.ID {
		clear(key)
		return nil, fmt.Errorf("decrypt with %s: got key %s, the file is of key %s", redacted(uri), id, w.ID)
	}
	return key, nil
}

// readPrivate returns a file that no one else can read.
func readPrivate(path string) (_ []byte, err error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("read key-encryption key: %w", err)
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	info, err := f.Stat()
	if err != nil {
		return nil, fmt.Errorf("read key-encryption key: %w", err)
	}
	if !info.Mode().IsRegular() || info.Size() > maxFile {
		return nil, fmt.Errorf("read key-encryption key %s: it is not a regular file of at most %d bytes", path, maxFile)
	}
	if perm := info.Mode().Perm(); perm&0o077 != 0 {
		return nil, fmt.Errorf("read key-encryption key %s: mode is %04o, want 0600", path, perm)
	}
	b := make([]byte, info.Size())
	if _, err := io.ReadFull(f, b); err != nil {
		return nil, fmt.Errorf("read key-encryption key %s: %w", path, err)
	}
	return b, nil
}

// writePrivate writes a new file of mode 0600, complete or not at all. When it
// returns nil, the file is durable: soon there is something under this key.
func writePrivate(path string, b []byte) (err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("write key-encryption key %s: %w", path, err)
		}
	}()
	dir := filepath.Dir(path)
	f, err := os.CreateTemp(dir, "."+filepath.Base(path)+".*") // mode 0600
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.Remove(f.Name())) }()
	_, err = f.Write(b)
	if err := errors.Join(err, f.Sync(), f.Close()); err != nil {
		return err
	}
	// Unlike a rename, a link does not replace what is there.
	if err := os.Link(f.Name(), path); err != nil {
		if errors.Is(err, os.ErrExist) {
			return os.ErrExist
		}
		return err
	}
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

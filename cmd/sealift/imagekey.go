package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"

	"github.com/spf13/pflag"
	"golang.org/x/term"

	"github.com/sealift/sealift/cmd/sealift/internal/keyring"
	"github.com/sealift/sealift/image/sign"
	"github.com/sealift/sealift/image/sign/bundle"
)

// keyOptions say where a key is that may be kept elsewhere.
type keyOptions struct {
	ref      string // as sign.Load takes it; that of the key directory if empty
	password string // file of the password or PIN; asked for if empty
}

func (o *keyOptions) addFlags(f *pflag.FlagSet, name, usage string) {
	f.StringVar(&o.ref, name, "", usage+": a `reference` to a PEM file, pkcs11:..., awskms://, gcpkms://, azurekms:// or hashivault://")
	o.addPassword(f, name)
}

// addPassword adds the flag for the password of the key of that flag.
func (o *keyOptions) addPassword(f *pflag.FlagSet, name string) {
	f.StringVar(&o.password, name+"-password", "", "`file` with the password or PIN of that key, mode 0600 (default: asked for)")
}

// load opens the key that ref names.
func (o *keyOptions) load(ctx context.Context, e *env, ref string) (*sign.Signer, error) {
	s, err := sign.Load(ctx, ref, func() ([]byte, error) { return o.secret(e) })
	if errors.Is(err, sign.ErrNoPKCS11) {
		return nil, withHint(err, "CGO_ENABLED=1 go build ./cmd/sealift")
	}
	return s, err
}

// secret returns the password or PIN: of the file, else of the person at the
// terminal.
func (o *keyOptions) secret(e *env) (_ []byte, err error) {
	if o.password != "" {
		info, err := os.Stat(o.password)
		if err != nil {
			return nil, fmt.Errorf("read the password: %w", err)
		}
		if perm := info.Mode().Perm(); perm&0o077 != 0 {
			return nil, fmt.Errorf("read the password: mode of %s is %04o, want 0600", o.password, perm)
		}
		b, err := readFile(o.password, 1<<10)
		return bytes.TrimRight(b, "\r\n"), err
	}
	in, ok := e.in.(*os.File)
	if !ok || !term.IsTerminal(int(in.Fd())) {
		return nil, errors.New("the key wants a password, and there is no terminal to ask at: give it in a file")
	}
	if _, err := fmt.Fprint(e.err, "password or PIN of the key: "); err != nil {
		return nil, err
	}
	b, err := term.ReadPassword(int(in.Fd()))
	_, err2 := fmt.Fprintln(e.err)
	return b, errors.Join(err, err2)
}

// imageSigner opens the image key: the one that was named, or that of the key
// directory. It must be the directory's, as installers trust no other.
func (o *keyOptions) imageSigner(ctx context.Context, e *env, ring *keyring.Keyring) (_ *sign.Signer, err error) {
	ref := o.ref
	if ref == "" {
		if ref, err = ring.ImageRef(); err != nil {
			return nil, err
		}
	}
	s, err := o.load(ctx, e, ref)
	if err != nil {
		return nil, err
	}
	text, err := ring.PublicPEM(keyring.FileImage)
	if err != nil {
		return nil, errors.Join(err, s.Close())
	}
	want, err := bundle.PublicKey(text)
	if err != nil {
		return nil, errors.Join(err, s.Close())
	}
	if !s.Public().Equal(want) {
		got, err1 := bundle.Hint(s.Public())
		hint, err2 := bundle.Hint(want)
		err := fmt.Errorf("the image key is %s, %s/%s.pub is %s: installers would refuse the image", got, ring.Dir(), keyring.FileImage, hint)
		return nil, errors.Join(err, err1, err2, s.Close())
	}
	return s, nil
}

// Package inspecttest builds small images for tests: complete in every part that
// package inspect looks at, but with an EFI program in place of a kernel
// and a few files in place of a system. New is the way in.
package inspecttest

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"math/big"
	"os"
	"time"

	"github.com/sealift/sealift/image"
	"github.com/sealift/sealift/image/efivar"
	"github.com/sealift/sealift/image/manifest"
	"github.com/sealift/sealift/image/pe"
	"github.com/sealift/sealift/image/pkcs7"
	"github.com/sealift/sealift/image/sign"
	"github.com/sealift/sealift/image/tree"
	"github.com/sealift/sealift/image/uki/ukitest"
	"github.com/sealift/sealift/profiles"
)

// Stub is the file of the systemd-boot-efi package that images are made of.
const Stub = "/usr/lib/systemd/boot/efi/linuxx64.efi.stub"

// KernelRelease is the release of the images' kernel.
const KernelRelease = "6.1.0"

// Keys are those of a fleet, as far as an image needs them.
type Keys struct {
	DB        *pkcs7.Signer
	Enrolment efivar.Enrolment
	Auth      map[efivar.Variable][]byte // what the installer enrols
	PCR       *rsa.PrivateKey
	Image     *ecdsa.PrivateKey
}

// NewKeys makes keys. It takes a second or two.
func NewKeys() (*Keys, error) {
	k := &Keys{Auth: map[efivar.Variable][]byte{}}
	var err error
	if k.PCR, err = rsa.GenerateKey(rand.Reader, 2048); err != nil {
		return nil, err
	}
	if k.Image, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader); err != nil {
		return nil, err
	}
	signers := map[efivar.Variable]*pkcs7.Signer{}
	for _, v := range []efivar.Variable{efivar.PK, efivar.KEK, efivar.DB} {
		if signers[v], err = certificate(string(v)); err != nil {
			return nil, err
		}
	}
	k.DB = signers[efivar.DB]
	k.Enrolment = efivar.Enrolment{PK: signers[efivar.PK].Certificate, KEK: signers[efivar.KEK].Certificate, DB: k.DB.Certificate}
	lists, err := k.Enrolment.Lists()
	if err != nil {
		return nil, err
	}
	by := map[efivar.Variable]efivar.Variable{efivar.PK: efivar.PK, efivar.KEK: efivar.PK, efivar.DB: efivar.KEK}
	for v, list := range lists {
		if k.Auth[v], err = efivar.Authenticate(v, list, time.Unix(1700000000, 0), signers[by[v]]); err != nil {
			return nil, err
		}
	}
	return k, nil
}

func certificate(name string) (*pkcs7.Signer, error) {
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		return nil, err
	}
	c := &x509.Certificate{
		SerialNumber: big.NewInt(7), Subject: pkix.Name{CommonName: name},
		NotBefore: time.Unix(1600000000, 0), NotAfter: time.Unix(2100000000, 0),
	}
	der, err := x509.CreateCertificate(rand.Reader, c, c, key.Public(), key)
	if err != nil {
		return nil, err
	}
	if c, err = x509.ParseCertificate(der); err != nil {
		return nil, err
	}
	return &pkcs7.Signer{Key: key, Certificate: c}, nil
}

// ImagePublic returns the image key's public half in PEM.
func (k *Keys) ImagePublic() ([]byte, error) { return publicPEM(k.Image.Public()) }

func publicPEM(key any) ([]byte, error) {
	der, err := x509.MarshalPKIXPublicKey(key)
	if err != nil {
		return nil, err
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}), nil
}

// Input returns what a small image is built from. A caller may change it.
func (k *Keys) Input(out string) (*image.BuildInput, error) { return k.input(out, false) }

// DebugInput returns what a small image that is marked debug is built from.
func (k *Keys) DebugInput(out string) (*image.BuildInput, error) { return k.input(out, true) }

func (k *Keys) input(out string, debug bool) (*image.BuildInput, error) {
	in := &image.BuildInput{
		Profile: &profiles.Profile{
			Name: "small", Version: "1", Arch: "amd64",
			Kubernetes: profiles.Kubernetes{Distro: "kubernetes", Version: "v1.34.4"},
			Disk:       profiles.Disk{ESP: 64, Slot: 8, Verity: 1, UKI: 4},
			Debug:      debug,
		},
		LockDigest: sha256.Sum256([]byte("lock")),
		Epoch:      time.Unix(1750000000, 0),
		Kernel:     ukitest.Kernel(pe.MachineAMD64, KernelRelease),
		OSRelease:  osRelease(debug),
		DB:         k.DB,
		Enrolment:  k.Enrolment,
		PCR:        k.PCR,
		Output:     out,
	}
	var err error
	if in.Stub, err = os.ReadFile(Stub); err != nil {
		return nil, err
	}
	if in.Signer, err = sign.FromKey(k.Image); err != nil {
		return nil, err
	}
	in.Root, in.Boot, in.Installer, err = k.trees(in.Profile)
	return in, err
}

// New builds a small image with the given outputs, or those of a default build.
func (k *Keys) New(ctx context.Context, out string, outputs ...image.Output) (*manifest.Manifest, error) {
	in, err := k.Input(out)
	if err != nil {
		return nil, err
	}
	in.Outputs = outputs
	return image.Build(ctx, *in)
}

func osRelease(debug bool) []byte {
	if debug {
		return []byte("ID=sealift\nVARIANT_ID=" + profiles.VariantDebug + "\n")
	}
	return []byte("ID=sealift\n")
}

// trees returns a root file system and two initramfs.
func (k *Keys) trees(p *profiles.Profile) (root, boot, installer *tree.Tree, err error) {
	pcr, err := publicPEM(k.PCR.Public())
	if err != nil {
		return nil, nil, nil, err
	}
	pub, err := k.ImagePublic()
	if err != nil {
		return nil, nil, nil, err
	}
	name := p.Name + " " + p.Version
	big := make([]byte, 3<<20+5)
	for i := range big {
		big[i] = byte(i * i >> 7)
	}
	var failed error
	put := func(t *tree.Tree, name string, data []byte, mode os.FileMode) {
		if err := t.WriteFile(name, data, mode); failed == nil {
			failed = err
		}
	}
	object := func(v any) []byte {
		b, err := json.Marshal(v)
		if failed == nil {
			failed = err
		}
		return b
	}
	root = tree.New()
	put(root, "usr/bin/tool", big, 0o755)
	put(root, "etc/hostname", []byte("box\n"), 0o644)
	put(root, "etc/os-release", osRelease(p.Debug), 0o644)
	put(root, "empty", nil, 0o600)
	put(root, "usr/bin/sudo", []byte("setuid"), 0o755|os.ModeSetuid)
	put(root, "usr/lib/modules/"+KernelRelease+"/kernel/fs/erofs/erofs.ko", bytes.Repeat([]byte("module"), 1000), 0o644)
	for i := range 300 { // a directory of several blocks
		put(root, fmt.Sprintf("usr/share/many/file-with-a-long-name-%03d", i), []byte{byte(i)}, 0o644)
	}
	put(root, profiles.NodeConfigPath, object(profiles.NodeConfig{Image: name, Distro: p.Kubernetes.Distro, Version: p.Kubernetes.Version}), 0o644)
	if err := root.Symlink("tool", "usr/bin/link"); failed == nil {
		failed = err
	}
	boot = tree.New()
	put(boot, "init", []byte("boot"), 0o755)
	put(boot, profiles.AgentConfigPath, object(profiles.AgentConfig{Mode: profiles.ModeBoot, Image: name, Debug: p.Debug, PCRKey: string(pcr)}), 0o644)
	installer = tree.New()
	put(installer, "init", []byte("install"), 0o755)
	put(installer, profiles.AgentConfigPath, object(profiles.AgentConfig{Mode: profiles.ModeInstall, Image: name, Debug: p.Debug, ImageKey: string(pub)}), 0o644)
	for v, auth := range k.Auth {
		put(installer, fmt.Sprintf("%s/%s.auth", profiles.SecureBootDir, v), auth, 0o644)
	}
	return root, boot, installer, failed
}

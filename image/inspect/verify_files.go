package inspect

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/sealift/sealift/image/disk"
	"github.com/sealift/sealift/image/manifest"
	"github.com/sealift/sealift/image/sign/bundle"
	"github.com/sealift/sealift/profiles"
)

// Names of the files of every image directory.
const (
	FileManifest = "manifest.json"
	bundleSuffix = ".sigstore.json"
	FileBundle   = FileManifest + bundleSuffix
)

func (v *verifier) fileJobs() []job {
	jobs := []job{result("files.listed", v.checkListed)}
	for _, a := range v.m.Artifacts {
		jobs = append(jobs, result("file "+a.Name, func(ctx context.Context) (string, error) { return v.checkArtifact(ctx, a) }))
		switch a.Kind {
		case manifest.KindDiskZstd:
			jobs = append(jobs, result("file "+a.Name+": content", func(ctx context.Context) (string, error) { return v.checkZstd(ctx, a) }))
		case manifest.KindISO:
			jobs = append(jobs, result("file "+a.Name+": content", func(context.Context) (string, error) { return v.checkISO(a) }))
		case manifest.KindSPDX, manifest.KindCycloneDX:
			jobs = append(jobs, result("file "+a.Name+": content", func(context.Context) (string, error) { return v.checkSBOM(a) }))
		}
	}
	for _, name := range v.signedFiles() {
		jobs = append(jobs, result("file "+name, func(context.Context) (string, error) { return v.checkSigned(name) }))
	}
	return append(jobs,
		result("installer.layout", on(v.installer, v.checkPE)),
		result("installer.signature", on(v.installer, v.checkSignature)),
		result("installer.reference", on(v.installer, func(image []byte) (string, error) {
			return checkReference("installer", image, &v.m.Installer)
		})),
		result("installer.uname", v.checkUname(v.installer, profiles.ModeInstall)),
		result("installer.debug", v.checkDebug(v.installer, profiles.ModeInstall)),
		result("installer.initrd", v.checkInstaller),
	)
}

// open opens an artifact by its name, which must not lead out of the directory.
func (v *verifier) open(name string) (*os.File, error) {
	if v.Dir == "" {
		return nil, errors.New("cannot be checked without the image directory")
	}
	if name != filepath.Base(name) || name == "." || name == ".." || strings.ContainsRune(name, 0) {
		return nil, fmt.Errorf("name %.200q is not a plain file name", name)
	}
	path := filepath.Join(v.Dir, name)
	info, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, errors.New("it is missing")
	}
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, errors.New("it is not a regular file")
	}
	return os.Open(path)
}

// read returns a whole file of at most max bytes.
func (v *verifier) read(name string, max int64) (_ []byte, err error) {
	f, err := v.open(name)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	b, err := io.ReadAll(io.LimitReader(f, max+1))
	if err != nil {
		return nil, err
	}
	if int64(len(b)) > max {
		return nil, fmt.Errorf("it has more than %d bytes", max)
	}
	return b, nil
}

// checkListed wants each artifact once, and no file that no one vouches for.
func (v *verifier) checkListed(context.Context) (string, error) {
	known := map[string]bool{FileManifest: true, FileBundle: true}
	kinds := map[string]bool{}
	for _, a := range v.m.Artifacts {
		if known[a.Name] || kinds[a.Kind] {
			return "", fmt.Errorf("the manifest lists %s, kind %s, twice", a.Name, a.Kind)
		}
		if !slices.Contains(artifactKinds(), a.Kind) {
			return "", fmt.Errorf("the manifest lists %s, of a kind %.40q that is not known", a.Name, a.Kind)
		}
		known[a.Name], kinds[a.Kind] = true, true
	}
	for _, name := range v.signedFiles() {
		known[name], known[strings.TrimSuffix(name, bundleSuffix)] = true, true
	}
	entries, err := os.ReadDir(v.Dir)
	if err != nil {
		return "", err
	}
	for _, e := range entries {
		if !known[e.Name()] {
			return "", fmt.Errorf("%s is neither in the manifest nor signed for itself", e.Name())
		}
	}
	return fmt.Sprintf("%d files, each in the manifest or signed for itself", len(entries)), nil
}

// signedFiles returns the bundles in the directory but the manifest's.
func (v *verifier) signedFiles() []string {
	entries, err := os.ReadDir(v.Dir)
	if err != nil {
		return nil // checkListed tells
	}
	listed := map[string]bool{FileBundle: true}
	for _, a := range v.m.Artifacts {
		listed[a.Name] = true
	}
	var names []string
	for _, e := range entries {
		if strings.HasSuffix(e.Name(), bundleSuffix) && !listed[e.Name()] {
			names = append(names, e.Name())
		}
	}
	return names
}

// checkArtifact compares a file's size and digest with the manifest.
func (v *verifier) checkArtifact(ctx context.Context, a manifest.Artifact) (_ string, err error) {
	if a.Name == v.DiskName && a.Kind == manifest.KindDisk {
		return "is the disk", same("size", v.Disk.Size(), a.Size) // disk.digest has the rest
	}
	f, err := v.open(a.Name)
	if err != nil {
		return "", err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	info, err := f.Stat()
	if err != nil {
		return "", err
	}
	if err := same("size", info.Size(), a.Size); err != nil {
		return "", err
	}
	h := sha256.New()
	for off := int64(0); off < a.Size; {
		if err := ctx.Err(); err != nil {
			return "", err
		}
		n, err := io.Copy(h, io.NewSectionReader(f, off, min(16<<20, a.Size-off)))
		if err != nil {
			return "", err
		}
		if n == 0 {
			return "", io.ErrUnexpectedEOF
		}
		off += n
	}
	got := manifest.SHA256(h.Sum(nil))
	return got.String(), same("SHA-256", got, a.SHA256)
}

// checkZstd decompresses the disk and compares each chunk.
func (v *verifier) checkZstd(ctx context.Context, a manifest.Artifact) (_ string, err error) {
	if a.Name == v.DiskName {
		return "is the disk", nil // disk.chunks has the rest
	}
	f, err := v.open(a.Name)
	if err != nil {
		return "", err
	}
	if err := f.Close(); err != nil {
		return "", err
	}
	d, err := OpenDisk(filepath.Join(v.Dir, a.Name))
	if err != nil {
		return "", err
	}
	defer func() { err = errors.Join(err, d.Close()) }()
	if !d.Compressed {
		return "", errors.New("it is not compressed with zstd")
	}
	if err := same("size of the content", d.Size(), v.m.Disk.Size); err != nil {
		return "", err
	}
	return v.compareChunks(ctx, d)
}

// checkISO reads the installer from the ESP of an installation medium.
func (v *verifier) checkISO(a manifest.Artifact) (_ string, err error) {
	got, err := v.isoInstaller(a)
	if err != nil {
		return "", err
	}
	want, err := v.installer()
	if err != nil {
		return "", err
	}
	if !bytes.Equal(got, want) {
		return "", errors.New("the installer on its ESP is another than the image's")
	}
	return "the image's installer on its ESP", nil
}

func (v *verifier) isoInstaller(a manifest.Artifact) (_ []byte, err error) {
	f, err := v.open(a.Name)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	medium := &rawDisk{f: f, size: info.Size()}
	t, err := ReadTable(medium)
	if err != nil {
		return nil, fmt.Errorf("partition table: %w", err)
	}
	boot, err := disk.BootPath(v.m.Arch)
	if err != nil {
		return nil, err
	}
	for _, p := range t.Partitions {
		if p.Type.String() != "c12a7328-f81f-11d2-ba4b-00a0c93ec93b" {
			continue
		}
		part, err := sectionOf(medium, int64(p.First)*SectorSize, int64(p.Last-p.First+1)*SectorSize)
		if err != nil {
			return nil, err
		}
		esp, err := ReadFAT(part)
		if err != nil {
			return nil, fmt.Errorf("ESP: %w", err)
		}
		for _, e := range esp.Entries {
			if e.Path == boot && !e.Dir {
				return esp.ReadFile(e, maxUKI)
			}
		}
	}
	return nil, fmt.Errorf("no ESP with %s", boot)
}

// readInstaller takes the installer from its own file or, in an image without
// one, from the installation medium.
func (v *verifier) readInstaller() ([]byte, error) {
	if a, listed := v.m.Artifact(manifest.KindInstaller); listed {
		return v.read(a.Name, maxUKI)
	}
	if a, listed := v.m.Artifact(manifest.KindISO); listed {
		return v.isoInstaller(a)
	}
	return nil, errors.New("no file of the image holds the installer")
}

// checkInstaller reads the installer's initramfs: it must enrol the keys that
// the image is verified for, and believe the image key.
func (v *verifier) checkInstaller(context.Context) (string, error) {
	n, c, auth, err := v.agentConfig(profiles.ModeInstall)
	if err != nil {
		return "", err
	}
	got, err := bundle.PublicKey([]byte(c.ImageKey))
	if err != nil {
		return "", fmt.Errorf("image key of the installer: %w", err)
	}
	want, err := bundle.PublicKey(v.Keys.Image)
	if err != nil {
		return "", err
	}
	if !got.Equal(want) {
		return "", errors.New("the installer believes another image key")
	}
	e, err := v.enrolment()
	if err != nil {
		return "", err
	}
	lists, err := e.Lists()
	if err != nil {
		return "", err
	}
	for name, list := range lists {
		path := profiles.SecureBootDir + "/" + string(name) + ".auth"
		payload, ok := auth[path]
		if !ok {
			return "", fmt.Errorf("the installer has no %s", path)
		}
		got, err := authData(payload)
		if err != nil {
			return "", fmt.Errorf("%s: %w", path, err)
		}
		if !bytes.Equal(got, list) {
			return "", fmt.Errorf("%s enrols another %s than the given certificate", path, name)
		}
		delete(auth, path)
	}
	for path := range auth {
		return "", fmt.Errorf("the installer enrols %s, too", path)
	}
	return fmt.Sprintf("%d files, enrols PK, KEK and db, believes the image key", n), nil
}

// authData returns what an EFI_VARIABLE_AUTHENTICATION_2 (UEFI 2.10, 8.2.2)
// sets its variable to.
func authData(b []byte) ([]byte, error) {
	const stamp, header = 16, 24
	if len(b) < stamp+header {
		return nil, fmt.Errorf("%d bytes are too few", len(b))
	}
	n := int64(b[stamp]) | int64(b[stamp+1])<<8 | int64(b[stamp+2])<<16 | int64(b[stamp+3])<<24
	if n < header || n > int64(len(b)-stamp) {
		return nil, fmt.Errorf("certificate of %d bytes in %d", n, len(b))
	}
	return b[stamp+n:], nil
}

// artifactKinds are the kinds that this package knows.
func artifactKinds() []string {
	return []string{
		manifest.KindDisk, manifest.KindDiskZstd, manifest.KindUKI, manifest.KindInstaller, manifest.KindQCOW2, manifest.KindISO,
		manifest.KindSPDX, manifest.KindCycloneDX,
	}
}

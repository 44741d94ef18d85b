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
	"reflect"
	"slices"
	"strings"

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
		case manifest.KindDiskZstd, manifest.KindQCOW2:
			jobs = append(jobs, result("file "+a.Name+": content", func(ctx context.Context) (string, error) { return v.checkContent(ctx, a) }))
		case manifest.KindISO:
			jobs = append(jobs, result("file "+a.Name+": content", func(ctx context.Context) (string, error) { return v.checkISO(ctx, a) }))
		case manifest.KindSPDX, manifest.KindCycloneDX:
			jobs = append(jobs, result("file "+a.Name+": content", func(context.Context) (string, error) { return v.checkSBOM(a) }))
		}
	}
	for _, name := range v.signedFiles() {
		jobs = append(jobs, result("file "+name, func(context.Context) (string, error) { return v.checkSigned(name) }))
	}
	if !v.hasInstaller() {
		return append(jobs, result("installer", v.checkNoInstaller))
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

// checkContent opens the disk in a file and compares each chunk.
func (v *verifier) checkContent(ctx context.Context, a manifest.Artifact) (_ string, err error) {
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
	d, err := OpenArtifact(filepath.Join(v.Dir, a.Name), a.Kind)
	if err != nil {
		return "", err
	}
	defer func() { err = errors.Join(err, d.Close()) }()
	if err := same("size of the content", d.Size(), v.m.Disk.Size); err != nil {
		return "", err
	}
	return v.compareChunks(ctx, d)
}

// hasInstaller reports whether the manifest lists a file that holds the
// installer. Whether that file is there makes no difference: without it, the
// checks that need it fail.
func (v *verifier) hasInstaller() bool {
	_, netboot := v.m.Artifact(manifest.KindInstaller)
	_, medium := v.m.Artifact(manifest.KindISO)
	return netboot || medium
}

// checkNoInstaller wants no reference values of an installer that is in no file.
// Boots and SBOM entries of it are found by the checks of boots and SBOMs.
func (v *verifier) checkNoInstaller(context.Context) (string, error) {
	if !reflect.ValueOf(v.m.Installer).IsZero() {
		return "", errors.New("the manifest lists no file that holds an installer, and yet has values of one: build the image again")
	}
	return "none to verify: the manifest lists no file that holds one, and has no values of one", nil
}

// readInstaller takes the installer from its own file or, in an image without
// one, from the installation medium.
func (v *verifier) readInstaller() (_ []byte, err error) {
	if a, listed := v.m.Artifact(manifest.KindInstaller); listed {
		return v.read(a.Name, maxUKI)
	}
	a, listed := v.m.Artifact(manifest.KindISO)
	if !listed {
		return nil, errors.New("no file of the image holds the installer")
	}
	f, err := v.open(a.Name)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	return isoInstaller(&rawDisk{f: f, size: info.Size()}, v.m.Arch)
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

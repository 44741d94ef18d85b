package install

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"runtime"
	"sync"
	"time"

	"github.com/klauspost/compress/zstd"

	attestapi "github.com/sealift/sealift/attest/api"
	"github.com/sealift/sealift/image/manifest"
	"github.com/sealift/sealift/provisioner/api"
)

// maxBundle bounds a sigstore bundle, in bytes.
const maxBundle = 1 << 20

// maxWindow bounds the memory of the decompressor, in bytes. It is the window
// of the strongest level that image builds use, with room above it.
const maxWindow = 32 << 20

// Phases of an install, as Progress.Phase has them.
const (
	PhaseVerify     = "verify"
	PhaseSecureBoot = "secure-boot"
	PhaseWrite      = "write"
	PhaseRecord     = "record"
	PhaseInstalled  = "installed"
	PhaseFailed     = "failed"
)

// Machine is the hardware that an image is installed on.
type Machine interface {
	// OpenDisk chooses the one disk to install on, of at least that many
	// bytes, and opens it.
	OpenDisk(need int64) (OpenDisk, error)
	// EnrolSecureBoot puts the firmware into user mode with the image's keys.
	// It returns "enrolled" or "already"; foreign keys are an error.
	EnrolSecureBoot() (string, error)
	// MakeBootable gives the disk, which holds the whole image now, an identity
	// of its own, makes its table fill the disk, and puts it first in the
	// firmware's boot order. It returns the new disk GUID, lower case.
	MakeBootable(d OpenDisk, description string) (string, error)
	// EndorsementKey reads the TPM's endorsement key (TPMT_PUBLIC) and its
	// certificates (DER).
	EndorsementKey() (public []byte, certificates [][]byte, err error)
}

// Source is where an image comes from, and where what became of it is told.
// Nothing that it gives is trusted.
type Source interface {
	// Manifest returns the manifest and its bundle. It waits for what may
	// still come.
	Manifest(ctx context.Context) (manifest, bundle []byte, err error)
	// Disk returns the compressed disk of that manifest, of exactly size bytes.
	Disk(ctx context.Context, size int64) (io.ReadCloser, error)
	// Progress tells whoever watches. An error means only that nobody was told.
	Progress(ctx context.Context, p api.Progress) error
	// Record keeps the install record. It tries for as long as it takes; the
	// error wraps ErrNotKept if that makes no sense.
	Record(ctx context.Context, r api.Record) error
}

// OpenDisk is a chosen disk. String names it for a person.
type OpenDisk interface {
	Disk
	fmt.Stringer
	Close() error
}

// Flow installs one machine. All fields are required unless marked Optional.
type Flow struct {
	Source  Source
	Host    api.HostKey
	Serial  string // Optional; SMBIOS type 1
	Machine Machine
	// Verify checks the bundle's signature over the manifest's bytes.
	Verify  func(manifest, bundle []byte) error
	MinDisk int64 // Optional; bytes
	// Suits reports a machine that the image is not for. It is asked before
	// anything of the machine is changed. Optional.
	Suits func() error
	// Image is the only one, "name version", that may be installed. Optional:
	// any signed one may if empty.
	Image string
	// Step prints a milestone for a person at the machine.
	Step func(format string, args ...any)
	Log  *slog.Logger
	// Now is the clock of the record.
	Now func() time.Time
}

// Run installs. It waits for a network or server that is away for as long as
// it takes, and fails only for what waiting does not mend. After a failure the
// disk is untouched or without a partition table.
func (f *Flow) Run(ctx context.Context) error {
	tell := &teller{flow: f, wake: make(chan struct{}, 1)}
	ctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	wg.Go(func() { tell.run(ctx) })
	err := f.run(ctx, tell)
	if err != nil {
		tell.set(PhaseFailed, 0, 0, err.Error())
	} else {
		tell.set(PhaseInstalled, 0, 0, "")
	}
	tell.last(ctx)
	cancel()
	wg.Wait()
	return err
}

func (f *Flow) run(ctx context.Context, tell *teller) error {
	tell.set(PhaseVerify, 0, 0, "")
	m, digest, err := f.fetchManifest(ctx)
	if err != nil {
		return err
	}
	name := m.Name + " " + m.Version
	f.Step("image %s: signature verified", name)

	artifact, ok := m.Artifact(manifest.KindDiskZstd)
	if !ok {
		return fmt.Errorf("image %s: the manifest has no artifact of kind %s", name, manifest.KindDiskZstd)
	}
	if f.Suits != nil {
		if err := f.Suits(); err != nil {
			return fmt.Errorf("image %s: %w", name, err)
		}
	}
	// Before the disk is touched: a machine whose TPM is off could never attest,
	// and would boot what was installed all the same.
	public, certs, err := f.Machine.EndorsementKey()
	if err != nil {
		return err
	}
	disk, err := f.Machine.OpenDisk(max(f.MinDisk, m.Disk.Size))
	if err != nil {
		return err
	}
	defer disk.Close()

	tell.set(PhaseSecureBoot, 0, 0, "")
	secureBoot, err := f.Machine.EnrolSecureBoot()
	if err != nil {
		return err
	}
	f.Step("Secure Boot keys: %s", secureBoot)

	f.Step("writing image %s to %s", name, disk)
	if err := f.write(ctx, artifact.Size, m.Disk, disk, tell); err != nil {
		return err
	}
	guid, err := f.Machine.MakeBootable(disk, "Sealift "+m.Name)
	if err != nil {
		return err
	}
	f.Step("image written and read back, disk GUID %s", guid)

	tell.set(PhaseRecord, 0, 0, "")
	record, err := json.Marshal(attestapi.InstallRecord{
		EKPublic:       public,
		EKCertificates: certs,
		DiskGUID:       guid,
		Serial:         f.Serial,
		UUID:           f.Host.UUID,
		MAC:            f.Host.MAC,
		Image:          name,
		ManifestDigest: digest.String(),
		SecureBoot:     secureBoot,
		Finished:       f.Now().UTC(),
	})
	if err != nil {
		return fmt.Errorf("encode the install record: %w", err)
	}
	err = f.Source.Record(ctx, api.Record{Host: f.Host, Record: record})
	if errors.Is(err, ErrNotKept) {
		f.Step("%v", err)
		f.Step("approve the machine when it shows up: sealift machine approve")
		return nil
	}
	return err
}

// fetchManifest gets the manifest and its bundle, and verifies before it
// decodes.
func (f *Flow) fetchManifest(ctx context.Context) (m *manifest.Manifest, digest manifest.SHA256, err error) {
	raw, bundle, err := f.Source.Manifest(ctx)
	if err != nil {
		return nil, digest, err
	}
	if err := f.Verify(raw, bundle); err != nil {
		return nil, digest, fmt.Errorf("the manifest's signature was not accepted: %w", err)
	}
	if m, err = manifest.Decode(raw); err != nil {
		return nil, digest, err
	}
	if name := m.Name + " " + m.Version; f.Image != "" && name != f.Image {
		return nil, digest, fmt.Errorf("there is image %s, this is the installer of image %s", name, f.Image)
	}
	if m.Arch != runtime.GOARCH {
		return nil, digest, fmt.Errorf("image %s %s is for %s, this machine is %s", m.Name, m.Version, m.Arch, runtime.GOARCH)
	}
	return m, sha256.Sum256(raw), nil
}

func (f *Flow) write(ctx context.Context, size int64, layout manifest.Disk, disk Disk, tell *teller) error {
	compressed, err := f.Source.Disk(ctx, size)
	if err != nil {
		return err
	}
	defer compressed.Close()
	z, err := zstd.NewReader(compressed,
		zstd.WithDecoderConcurrency(1),
		zstd.WithDecoderMaxWindow(maxWindow))
	if err != nil {
		return fmt.Errorf("decompress the image: %w", err)
	}
	defer z.Close()
	tenth := int64(0)
	w := Writer{Disk: disk, Layout: layout, Progress: func(done, total int64) {
		tell.set(PhaseWrite, done, total, "")
		if t := done * 10 / total; t > tenth {
			tenth = t
			f.Step("%d %% of %d MiB", t*10, total>>20)
		}
	}}
	return w.Write(z)
}

// teller posts the newest progress, at most once a second, and drops what it
// could not post: progress is for whoever watches, not for the install.
type teller struct {
	flow *Flow
	wake chan struct{} // has room for one

	mu  sync.Mutex
	now api.Progress // guarded by mu
}

const tellEvery = time.Second

func (t *teller) set(phase string, done, total int64, text string) {
	t.mu.Lock()
	changed := t.now.Phase != phase
	t.now = api.Progress{Host: t.flow.Host, Phase: phase, Done: done, Total: total, Text: cut(text)}
	t.mu.Unlock()
	if changed || total > 0 {
		select {
		case t.wake <- struct{}{}:
		default:
		}
	}
}

// cut keeps Progress.Text within its bound.
func cut(s string) string {
	if len(s) > 1000 {
		return s[:1000]
	}
	return s
}

func (t *teller) run(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.wake:
			t.post(ctx)
		}
		if err := sleep(ctx, tellEvery); err != nil {
			return
		}
	}
}

func (t *teller) post(ctx context.Context) {
	t.mu.Lock()
	p := t.now
	t.mu.Unlock()
	if err := t.flow.Source.Progress(ctx, p); err != nil && !errors.Is(err, context.Canceled) {
		t.flow.Log.Debug("progress not posted", "phase", p.Phase, "err", err)
	}
}

// last posts how it ended, which run may have had no time for.
func (t *teller) last(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	t.post(ctx)
}

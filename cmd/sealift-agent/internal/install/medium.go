package install

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/sealift/sealift/cmd/sealift-agent/internal/blockdev"
	"github.com/sealift/sealift/image/iso9660"
	"github.com/sealift/sealift/image/manifest"
	"github.com/sealift/sealift/profiles"
	"github.com/sealift/sealift/provisioner/api"
)

// ErrNotKept says that an install record could not be kept. The install itself
// is complete.
var ErrNotKept = errors.New("the install record was not kept")

// ErrNoMedium says that no installation medium appeared.
var ErrNoMedium = errors.New("there is no installation medium")

// mediumInterval is how often a wait for a medium looks again. A USB stick
// takes a second or two.
const mediumInterval = 250 * time.Millisecond

// Medium is an installation medium as a Source: a USB stick or an optical disc
// with what a provisioner would send. It is trusted with as little as the
// network is.
type Medium struct {
	about  blockdev.Disk
	device *os.File
	volume *iso9660.Volume
}

// FindMedium looks for wait, at least once, for the one device that holds an
// installation medium, which it knows by the volume's label. The error wraps
// ErrNoMedium if there is none; two are refused.
func FindMedium(ctx context.Context, s blockdev.System, wait time.Duration) (*Medium, error) {
	for end := time.Now().Add(wait); ; {
		m, err := findMedium(s)
		if m != nil || err != nil {
			return m, err
		}
		if !time.Now().Before(end) {
			return nil, fmt.Errorf("%w: no device holds a volume labelled %s", ErrNoMedium, profiles.MediumLabel)
		}
		if err := sleep(ctx, mediumInterval); err != nil {
			return nil, err
		}
	}
}

func findMedium(s blockdev.System) (found *Medium, err error) {
	devices, err := s.Media()
	if err != nil {
		return nil, err
	}
	for _, d := range devices {
		// A device that cannot be read may be any of the machine's; it is not
		// the one that is looked for.
		m, err := openMedium(d)
		if err != nil {
			continue
		}
		if found != nil {
			return nil, errors.Join(fmt.Errorf("there are two installation media, %s and %s", found, m), found.Close(), m.Close())
		}
		found = m
	}
	return found, nil
}

func openMedium(d blockdev.Disk) (*Medium, error) {
	f, err := os.Open(d.Node)
	if err != nil {
		return nil, err
	}
	size, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	v, err := iso9660.Read(f, size)
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	if v.Label != profiles.MediumLabel {
		return nil, errors.Join(fmt.Errorf("volume is labelled %q", v.Label), f.Close())
	}
	return &Medium{about: d, device: f, volume: v}, nil
}

// String names the medium for a person.
func (m *Medium) String() string { return m.about.String() }

// Node returns the device that the medium is in.
func (m *Medium) Node() string { return m.about.Node }

// Close ends the use of the medium.
func (m *Medium) Close() error { return m.device.Close() }

// read returns a small file whole.
func (m *Medium) read(name string, limit int64) ([]byte, error) {
	r, ok := m.volume.Open(name)
	if !ok {
		return nil, fmt.Errorf("the installation medium %s has no file %s", m, name)
	}
	if r.Size() > limit {
		return nil, fmt.Errorf("installation medium %s: file %s has %d bytes, at most %d allowed", m, name, r.Size(), limit)
	}
	b, err := io.ReadAll(r)
	if err != nil {
		return nil, fmt.Errorf("installation medium %s: read %s: %w", m, name, err)
	}
	return b, nil
}

// Manifest reads the manifest and its bundle.
func (m *Medium) Manifest(context.Context) (raw, bundle []byte, err error) {
	if raw, err = m.read(profiles.MediumManifest, manifest.MaxSize); err != nil {
		return nil, nil, err
	}
	bundle, err = m.read(profiles.MediumBundle, maxBundle)
	return raw, bundle, err
}

// Disk returns the compressed disk.
func (m *Medium) Disk(_ context.Context, size int64) (io.ReadCloser, error) {
	r, ok := m.volume.Open(profiles.MediumDisk)
	if !ok {
		return nil, fmt.Errorf("the installation medium %s has no file %s", m, profiles.MediumDisk)
	}
	if r.Size() != size {
		return nil, fmt.Errorf("installation medium %s: %s has %d bytes, the signed manifest says %d", m, profiles.MediumDisk, r.Size(), size)
	}
	return io.NopCloser(r), nil
}

// Progress does nothing: nobody watches.
func (m *Medium) Progress(context.Context, api.Progress) error { return nil }

// Record writes the record behind those that are on the medium already. A
// medium that cannot be written, or is full, gives ErrNotKept.
func (m *Medium) Record(_ context.Context, r api.Record) error {
	if err := m.record(r.Record); err != nil {
		return fmt.Errorf("%w on %s: %w", ErrNotKept, m, err)
	}
	return nil
}

func (m *Medium) record(record []byte) (err error) {
	at, size, ok := m.volume.Extent(profiles.MediumRecords)
	if !ok || size > profiles.MediumRecordsSize {
		return fmt.Errorf("it has no room for records (%s)", profiles.MediumRecords)
	}
	f, err := os.OpenFile(m.about.Node, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	all := make([]byte, size)
	if _, err := f.ReadAt(all, at); err != nil {
		return err
	}
	used := len(bytes.TrimRight(all, "\n"))
	if used > 0 {
		used++ // the newline that ends the last record
	}
	line := append(bytes.TrimSpace(record), '\n')
	if bytes.ContainsRune(line[:len(line)-1], '\n') {
		return errors.New("the record has more than one line")
	}
	if len(line) > len(all)-used {
		return fmt.Errorf("its %d bytes for records are full", size)
	}
	if _, err := f.WriteAt(line, at+int64(used)); err != nil {
		return err
	}
	return f.Sync()
}

package inspect

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/sealift/sealift/image/disk"
	"github.com/sealift/sealift/image/guid"
	"github.com/sealift/sealift/image/manifest"
)

func (v *verifier) diskJobs() []job {
	jobs := []job{
		result("disk.size", v.checkSize),
		result("disk.gpt", v.checkTable),
		result("disk.partitions", v.checkPartitions),
		result("disk.gaps", v.checkGaps),
		result("disk.chunks", v.checkChunks),
		result("disk.layout", v.checkLayout),
		result("disk.slot-b", v.checkSlotB),
	}
	if _, listed := v.m.Artifact(manifest.KindDisk); listed {
		jobs = append(jobs, result("disk.digest", v.checkDigest))
	}
	return append(jobs,
		result("esp.fat", v.checkFAT),
		result("esp.files", v.checkESPFiles),
		result("esp.stamps", v.checkStamps),
		result("esp.unused", v.checkESPUnused),
	)
}

func (v *verifier) checkSize(context.Context) (string, error) {
	size, want := v.Disk.Size(), v.m.Disk.Size
	if v.Installed && size > want && size%SectorSize == 0 {
		return fmt.Sprintf("%d bytes, the image has %d", size, want), nil
	}
	return fmt.Sprintf("%d bytes", size), same("size of the disk", size, want)
}

func (v *verifier) checkTable(context.Context) (string, error) {
	t, err := v.table()
	if err != nil {
		return "", err
	}
	return fmt.Sprintf("both headers and arrays, %d partitions, disk %s", len(t.Partitions), t.Disk), nil
}

// checkPartitions compares the table with the manifest.
func (v *verifier) checkPartitions(context.Context) (string, error) {
	t, err := v.table()
	if err != nil {
		return "", err
	}
	entries := t.Partitions
	state := ""
	if v.Installed && len(entries) == len(v.m.Disk.Partitions)+1 {
		last := entries[len(entries)-1]
		if err := checkState(last, v.m.Disk.Partitions); err != nil {
			return "", err
		}
		entries = entries[:len(entries)-1]
		state = ", and the machine's state"
	}
	if err := same("number of partitions", len(entries), len(v.m.Disk.Partitions)); err != nil {
		return "", err
	}
	var different []error
	var names []string
	for i, p := range v.m.Disk.Partitions {
		e := entries[i]
		at := fmt.Sprintf("partition %d (%s): ", p.Number, p.Role)
		for _, err := range []error{
			same(at+"number", e.Number, p.Number), same(at+"label", e.Name, p.Label), same(at+"role", p.Role, p.Label),
			same(at+"type", e.Type.String(), p.Type), same(at+"GUID", e.GUID.String(), p.GUID),
			same(at+"first LBA", e.First, p.FirstLBA), same(at+"sectors", e.Last-e.First+1, p.Sectors),
		} {
			if err != nil {
				different = append(different, err)
			}
		}
		if e.Attributes != 0 {
			different = append(different, &Mismatch{What: at + "attributes", Got: fmt.Sprintf("%#x", e.Attributes), Want: "0"})
		}
		names = append(names, p.Role)
	}
	return strings.Join(names, ", ") + state, several(different)
}

// checkState checks the partition that the first boot adds behind the image's.
func checkState(e Entry, image []manifest.Partition) error {
	linux, err := guid.Parse("0fc63daf-8483-4772-8e79-3d69d8477de4")
	if err != nil {
		return err
	}
	if e.Number != len(image)+1 || e.Name != manifest.RoleState || e.Type != linux || e.Attributes != 0 {
		return fmt.Errorf("partition %d is %q of type %s, want only the image's and number %d, %q of type %s", e.Number, e.Name, e.Type, len(image)+1, manifest.RoleState, linux)
	}
	for _, p := range image {
		if e.First < p.FirstLBA+p.Sectors {
			return fmt.Errorf("the state partition begins at LBA %d, before the end of %s", e.First, p.Role)
		}
	}
	return nil
}

// layout returns what the builder makes of the manifest's sizes and the root
// hash that is on the disk.
func (v *verifier) layout() (*disk.Layout, error) {
	var sizes disk.Sizes
	for _, p := range v.m.Disk.Partitions {
		n := int64(p.Sectors) * SectorSize
		switch p.Role {
		case manifest.RoleESP:
			sizes.ESP = n
		case manifest.RoleRootA:
			sizes.Slot = n
		case manifest.RoleRootVerityA:
			sizes.Verity = n
		}
	}
	id, partitions, err := disk.AB(v.m.Arch, sizes, v.m.Root.RootHash)
	if err != nil {
		return nil, err
	}
	return disk.Plan(id, partitions)
}

// checkLayout derives types, GUIDs and places of all partitions from
// architecture, root hash and sizes, as firmware-independent tools find a root
// file system by them (UAPI Discoverable Partitions Specification).
func (v *verifier) checkLayout(context.Context) (string, error) {
	l, err := v.layout()
	if err != nil {
		return "", err
	}
	if _, err := sameJSON("disk.partitions", v.m.Disk.Partitions, l.Partitions); err != nil {
		return "", err
	}
	if err := same("size of the image", v.m.Disk.Size, l.Size); err != nil {
		return "", err
	}
	if !v.Installed {
		t, err := v.table()
		if err != nil {
			return "", err
		}
		if err := same("GUID of the disk", t.Disk, l.GUID); err != nil {
			return "", err
		}
	}
	return "types, GUIDs and places follow from architecture, root hash and sizes", nil
}

// checkGaps wants zeros outside of tables and partitions. Behind the image's
// last partition, an installed disk may hold what it held before.
func (v *verifier) checkGaps(context.Context) (string, error) {
	t, err := v.table()
	if err != nil {
		return "", err
	}
	end := v.Disk.Size()
	if v.Installed {
		end = v.imageEnd()
	}
	var total int64
	for _, g := range t.gaps() {
		to := min(g[1], end)
		if to <= g[0] {
			continue
		}
		off, err := firstNonZero(v.Disk, g[0], to)
		if err != nil {
			return "", err
		}
		if off >= 0 {
			return "", fmt.Errorf("there is data at byte %d, outside of all partitions", off)
		}
		total += to - g[0]
	}
	return fmt.Sprintf("%d bytes outside of all partitions are zero", total), nil
}

// imageEnd returns where the last partition of the image ends, bytes.
func (v *verifier) imageEnd() int64 {
	var end int64
	for _, p := range v.m.Disk.Partitions {
		end = max(end, int64(p.FirstLBA+p.Sectors)*SectorSize)
	}
	return end
}

// checkSlotB wants the second slot empty, as it is until the first update.
func (v *verifier) checkSlotB(context.Context) (string, error) {
	for _, role := range []string{manifest.RoleRootB, manifest.RoleRootVerityB} {
		p, err := v.partition(role)
		if err != nil {
			return "", err
		}
		off, err := firstNonZero(p, 0, p.Size())
		if err != nil {
			return "", err
		}
		if off >= 0 {
			return "", fmt.Errorf("partition %s has data at its byte %d, want it empty", role, off)
		}
	}
	return "empty", nil
}

// asBuilt returns the disk as the builder left it. For an installed one, the
// parts that installer and first boot change are put back, and what follows the
// image is cut off.
func (v *verifier) asBuilt() (Disk, error) {
	if !v.Installed {
		return v.Disk, nil
	}
	if v.Disk.Size() < v.m.Disk.Size {
		return nil, fmt.Errorf("the disk has %d bytes, the image %d", v.Disk.Size(), v.m.Disk.Size)
	}
	l, err := v.layout()
	if err != nil {
		return nil, err
	}
	if l.Size != v.m.Disk.Size {
		return nil, fmt.Errorf("the image has %d bytes, its partitions make %d", v.m.Disk.Size, l.Size)
	}
	f := &sparse{size: l.Size, sectors: map[int64][]byte{}}
	if err := l.WriteTable(f); err != nil {
		return nil, err
	}
	return &restored{Disk: v.Disk, table: f, head: gptFirstUsable * SectorSize, tail: v.imageEnd()}, nil
}

// restored is an installed disk with the image's own partition tables.
type restored struct {
	Disk
	table *sparse
	head  int64 // the table is before this offset,
	tail  int64 // and behind this one
}

func (r *restored) Size() int64 { return r.table.size }

func (r *restored) ReadAt(p []byte, off int64) (int, error) {
	done := 0
	for done < len(p) {
		at := off + int64(done)
		from, end := io.ReaderAt(r.table), r.table.size
		switch {
		case at < 0 || at >= r.table.size:
			return done, io.EOF
		case at < r.head:
			end = r.head
		case at < r.tail:
			from, end = r.Disk, r.tail
		}
		n, err := from.ReadAt(p[done:min(int64(len(p)), int64(done)+end-at)], at)
		done += n
		if err != nil && (n == 0 || !errors.Is(err, io.EOF)) {
			return done, err
		}
	}
	return done, nil
}

// sparse is a file in memory of which little is ever written, in sectors.
type sparse struct {
	size    int64
	sectors map[int64][]byte // by number
}

func (s *sparse) ReadAt(p []byte, off int64) (int, error) {
	for i := range p {
		at := off + int64(i)
		if at >= s.size {
			return i, io.EOF
		}
		p[i] = 0
		if b := s.sectors[at/SectorSize]; b != nil {
			p[i] = b[at%SectorSize]
		}
	}
	return len(p), nil
}

func (s *sparse) WriteAt(p []byte, off int64) (int, error) {
	for i, c := range p {
		at := off + int64(i)
		b := s.sectors[at/SectorSize]
		if b == nil {
			if c == 0 {
				continue
			}
			b = make([]byte, SectorSize)
			s.sectors[at/SectorSize] = b
		}
		b[at%SectorSize] = c
	}
	return len(p), nil
}

// checkChunks compares every byte of the disk with the digest of its chunk.
func (v *verifier) checkChunks(ctx context.Context) (string, error) {
	d, err := v.image()
	if err != nil {
		return "", err
	}
	if d.Size() != v.m.Disk.Size {
		return "", &Mismatch{What: "size of the disk", Got: fmt.Sprint(d.Size()), Want: fmt.Sprint(v.m.Disk.Size)}
	}
	return v.compareChunks(ctx, d)
}

func (v *verifier) compareChunks(ctx context.Context, d Disk) (string, error) {
	size := v.m.Disk.ChunkSize
	var mu sync.Mutex
	bad := map[int]error{}
	g, ctx := errgroup.WithContext(ctx)
	next := make(chan int)
	g.Go(func() error {
		defer close(next)
		for i := range v.m.Disk.Chunks {
			select {
			case next <- i:
			case <-ctx.Done():
				return ctx.Err()
			}
		}
		return nil
	})
	for range v.Workers {
		g.Go(func() error {
			buf := make([]byte, size)
			for i := range next {
				if err := v.compareChunk(d, i, buf); err != nil {
					mu.Lock()
					bad[i] = err
					mu.Unlock()
				}
			}
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		return "", err
	}
	var different []error
	for i := range v.m.Disk.Chunks {
		if err := bad[i]; err != nil {
			different = append(different, err)
		}
	}
	return fmt.Sprintf("%d of %d bytes each", len(v.m.Disk.Chunks), size), several(different)
}

func (v *verifier) compareChunk(d Disk, i int, buf []byte) error {
	want := v.m.Disk.Chunks[i]
	off := int64(i) * int64(len(buf))
	from, _, err := nextData(d, off)
	if err != nil {
		return fmt.Errorf("chunk %d: %w", i, err)
	}
	var got manifest.SHA256
	if from < off+int64(len(buf)) {
		if err := readFull(d, buf, off); err != nil {
			return fmt.Errorf("chunk %d: %w", i, err)
		}
		if !allZero(buf) {
			got = sha256.Sum256(buf)
		}
	}
	if got == want {
		return nil
	}
	text := func(d manifest.SHA256) string {
		if d.IsZero() {
			return "all zero"
		}
		return d.String()
	}
	return &Mismatch{What: fmt.Sprintf("chunk %d (bytes %d to %d, in %s)", i, off, off+int64(len(buf)), v.within(off, int64(len(buf)))), Got: text(got), Want: text(want)}
}

// within names the partitions that a range of bytes touches.
func (v *verifier) within(off, n int64) string {
	var names []string
	for _, p := range v.m.Disk.Partitions {
		from, to := int64(p.FirstLBA)*SectorSize, int64(p.FirstLBA+p.Sectors)*SectorSize
		if off < to && from < off+n {
			names = append(names, p.Role)
		}
	}
	if len(names) == 0 {
		return "no partition"
	}
	return strings.Join(names, " and ")
}

// checkDigest compares the digest of the whole disk.
func (v *verifier) checkDigest(context.Context) (string, error) {
	a, _ := v.m.Artifact(manifest.KindDisk)
	d, err := v.image()
	if err != nil {
		return "", err
	}
	if err := same("size of "+a.Name, d.Size(), a.Size); err != nil {
		return "", err
	}
	got, err := v.digest()
	if err != nil {
		return "", err
	}
	return got.String(), same("SHA-256 of the disk", got, a.SHA256)
}

// wholeDigest computes the digest of the whole disk, one processor's work.
func (v *verifier) wholeDigest(ctx context.Context) (manifest.SHA256, error) {
	fail := func(err error) (manifest.SHA256, error) { return manifest.SHA256{}, err }
	d, err := v.image()
	if err != nil {
		return fail(err)
	}
	h := sha256.New()
	buf := make([]byte, zeroUnit)
	zeros := make([]byte, zeroUnit)
	for off := int64(0); off < d.Size(); {
		if err := ctx.Err(); err != nil {
			return fail(err)
		}
		from, _, err := nextData(d, off)
		if err != nil {
			return fail(err)
		}
		n := min(d.Size()-off, zeroUnit)
		b := zeros[:n]
		if from < off+n {
			b = buf[:n]
			if err := readFull(d, b, off); err != nil {
				return fail(err)
			}
		}
		h.Write(b)
		off += n
	}
	return manifest.SHA256(h.Sum(nil)), nil
}

func (v *verifier) readESP() (*FAT, error) {
	p, err := v.partition(manifest.RoleESP)
	if err != nil {
		return nil, err
	}
	return ReadFAT(p)
}

func (v *verifier) checkFAT(context.Context) (string, error) {
	f, err := v.esp()
	if err != nil {
		return "", err
	}
	return fmt.Sprintf("FAT32, %d clusters of %d bytes, both FATs and boot sectors", len(f.used), f.cluster), same("label", f.Label, "SEALIFT ESP")
}

// checkESPFiles wants the boot file and its directories, and nothing else:
// firmware starts other names, too, and none of them is in the manifest.
func (v *verifier) checkESPFiles(context.Context) (string, error) {
	f, err := v.esp()
	if err != nil {
		return "", err
	}
	boot, err := disk.BootPath(v.m.Arch)
	if err != nil {
		return "", err
	}
	var got []string
	for _, e := range f.Entries {
		name := e.Path
		if e.Dir {
			name += "/"
		}
		got = append(got, name)
	}
	slices.Sort(got)
	want := []string{"/EFI/", "/EFI/BOOT/", boot}
	if !slices.Equal(got, want) {
		return "", &Mismatch{What: "content of the ESP", Got: strings.Join(got, " "), Want: strings.Join(want, " ")}
	}
	return boot + " and nothing else", nil
}

// checkStamps derives what is random or from a clock elsewhere.
func (v *verifier) checkStamps(context.Context) (string, error) {
	f, err := v.esp()
	if err != nil {
		return "", err
	}
	image, err := v.uki()
	if err != nil {
		return "", err
	}
	digest := sha256.Sum256(image)
	if f.Serial != [4]byte(digest[:4]) {
		return "", &Mismatch{What: "serial number of the ESP", Got: fmt.Sprintf("%x", f.Serial), Want: fmt.Sprintf("%x, from the UKI's digest", digest[:4])}
	}
	epoch := time.Unix(v.m.Epoch, 0)
	for _, s := range f.stamps {
		want := fatTime(epoch)
		got := s.at
		if s.what == "access" {
			got[0], got[1] = want[0], want[1]
		}
		if got != want {
			return "", &Mismatch{What: s.what + " time of " + s.path, Got: fmt.Sprintf("%x", s.at), Want: fmt.Sprintf("%x, the epoch", want)}
		}
	}
	return fmt.Sprintf("serial number from the UKI, %d time stamps from the epoch", len(f.stamps)), nil
}

func (v *verifier) checkESPUnused(context.Context) (string, error) {
	f, err := v.esp()
	if err != nil {
		return "", err
	}
	return "all that no file uses is zero", f.CheckUnused()
}

package blockdev

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/sealift/sealift/cmd/sealift-agent/internal/gpt"
)

// edge is how much of a disk's start and end is looked at, in bytes: every
// partition table and file system leaves a trace in one of the two.
const edge = 1 << 20

// Kind says what a disk holds, as far as its first and last MiB show.
type Kind int

// Kinds. The zero value is the safe one.
const (
	Foreign Kind = iota // something else, or not known
	Blank               // nothing: all bits zero, or all one as in erased flash
	Ours                // a Sealift installation
)

// Content is what a disk holds.
type Content struct {
	Kind Kind
	What string // for a message, e.g. "an ext4 file system"
}

// Candidate is a disk and its content.
type Candidate struct {
	Disk
	Content Content
}

// Rule says on which disks an installation may go.
type Rule struct {
	MinSize  int64 // bytes; smaller disks are never chosen
	Wipe     bool  // write over foreign data
	Smallest bool  // of several eligible disks take the smallest, if only one is
}

// Choose returns the one disk that the rule allows. It never chooses
// removable or read-only disks, nor disks without 512-byte logical blocks,
// which the image's partition table is made for. Where several disks are
// eligible it refuses to guess. The error says of each disk why not.
func Choose(candidates []Candidate, r Rule) (Disk, error) {
	var eligible []Candidate
	var reasons []string
	for _, c := range candidates {
		if why := r.refuse(c); why != "" {
			reasons = append(reasons, fmt.Sprintf("%s: %s", c.Disk, why))
			continue
		}
		eligible = append(eligible, c)
	}
	if r.Smallest && len(eligible) > 1 {
		smallest := eligible[:1]
		for _, c := range eligible[1:] {
			switch {
			case c.Size < smallest[0].Size:
				smallest = []Candidate{c}
			case c.Size == smallest[0].Size:
				smallest = append(smallest[:len(smallest):len(smallest)], c)
			}
		}
		eligible = smallest
	}
	switch len(eligible) {
	case 1:
		return eligible[0].Disk, nil
	case 0:
		if len(reasons) == 0 {
			return Disk{}, errors.New("choose a disk: there is none")
		}
		return Disk{}, fmt.Errorf("choose a disk: none is eligible: %s", strings.Join(reasons, "; "))
	}
	var names []string
	for _, c := range eligible {
		names = append(names, c.Disk.String())
	}
	return Disk{}, fmt.Errorf("choose a disk: several are eligible: %s", strings.Join(names, ", "))
}

// refuse says why the disk is not eligible, or nothing.
func (r Rule) refuse(c Candidate) string {
	switch {
	case c.Removable:
		return "removable"
	case c.ReadOnly:
		return "read-only"
	case c.SectorSize != gpt.SectorSize:
		return fmt.Sprintf("logical blocks have %d bytes, want %d", c.SectorSize, gpt.SectorSize)
	case c.Size < r.MinSize:
		return fmt.Sprintf("%d MiB, want at least %d MiB", c.Size>>20, r.MinSize>>20)
	case c.Content.Kind == Foreign && !r.Wipe:
		return "holds " + c.Content.What
	}
	return ""
}

// Candidates returns all disks with what they hold. A disk that cannot be
// read counts as foreign.
func (s System) Candidates() ([]Candidate, error) {
	disks, err := s.Disks()
	if err != nil {
		return nil, err
	}
	var cs []Candidate
	for _, d := range disks {
		cs = append(cs, Candidate{Disk: d, Content: content(d)})
	}
	return cs, nil
}

func content(d Disk) Content {
	f, err := os.Open(d.Node)
	if err != nil {
		return Content{What: "what cannot be read: " + err.Error()}
	}
	defer f.Close()
	c, err := Inspect(f, d.Size)
	if err != nil {
		return Content{What: "what cannot be read: " + err.Error()}
	}
	return c
}

// Inspect says what a disk of size bytes holds.
func Inspect(r io.ReaderAt, size int64) (Content, error) {
	n := min(size, edge)
	first, last := make([]byte, n), make([]byte, n)
	if _, err := r.ReadAt(first, 0); err != nil {
		return Content{}, fmt.Errorf("inspect disk: %w", err)
	}
	if _, err := r.ReadAt(last, size-n); err != nil && err != io.EOF {
		return Content{}, fmt.Errorf("inspect disk: %w", err)
	}
	if uniform(first, 0) && uniform(last, 0) || uniform(first, 0xff) && uniform(last, 0xff) {
		return Content{Kind: Blank, What: "nothing"}, nil
	}
	if t, err := gpt.Read(r, size); err == nil {
		if ours(t) {
			return Content{Kind: Ours, What: "a Sealift installation"}, nil
		}
		return Content{What: fmt.Sprintf("a partition table with %d partitions", len(t.Partitions))}, nil
	}
	for _, s := range signatures {
		b := first
		if s.fromEnd {
			b = last
		}
		if at := s.at; s.fromEnd {
			if at = len(b) - s.at; at >= 0 && bytes.HasPrefix(b[at:], []byte(s.magic)) {
				return Content{What: s.what}, nil
			}
		} else if at < len(b) && bytes.HasPrefix(b[at:], []byte(s.magic)) {
			return Content{What: s.what}, nil
		}
	}
	return Content{What: "unknown data"}, nil
}

// ours reports whether the partitions have the names of our layout.
func ours(t *gpt.Table) bool {
	for _, name := range []string{"esp", "root-a", "root-verity-a", "root-b", "root-verity-b"} {
		if _, ok := t.ByName(name); !ok {
			return false
		}
	}
	return true
}

func uniform(b []byte, v byte) bool {
	return len(b) == 0 || b[0] == v && bytes.Equal(b[1:], b[:len(b)-1])
}

// signatures serve the message only: every disk that is not blank and not
// ours is foreign, also without one.
var signatures = []struct {
	magic   string
	at      int // bytes from the start, or back from the end
	fromEnd bool
	what    string
}{
	{"EFI PART", 512, false, "a damaged partition table"},
	{"EFI PART", 512, true, "a damaged partition table"},
	{"LUKS\xba\xbe", 0, false, "a LUKS volume"},
	{"LABELONE", 512, false, "an LVM volume"},
	{"XFSB", 0, false, "an xfs file system"},
	{"hsqs", 0, false, "a squashfs file system"},
	{"\xe2\xe1\xf5\xe0", 1024, false, "an erofs file system"},
	{"\x53\xef", 1080, false, "an ext2, ext3 or ext4 file system"},
	{"_BHRfS_M", 65600, false, "a btrfs file system"},
	{"SWAPSPACE2", 4086, false, "swap space"},
	{"\xfc\x4e\x2b\xa9", 4096, false, "a RAID member"},
	{"\xfc\x4e\x2b\xa9", 8192, true, "a RAID member"},
	{"NTFS    ", 3, false, "an NTFS file system"},
	{"CD001", 32769, false, "an ISO 9660 image"},
	{"\x55\xaa", 510, false, "an MBR partition table or boot sector"},
}

package inspect

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"strings"
)

// Limits of a FAT32 volume that ReadFAT takes.
const (
	minClusters    = 65525   // fewer make a FAT16 by definition
	maxClusters    = 4 << 20 // 16 MiB of FAT
	maxFATEntries  = 1024    // files and directories
	maxFATDepth    = 16
	fatEntrySize   = 32
	fatEndOfChain  = 0x0ffffff8
	attrVolume     = 0x08
	attrDirectory  = 0x10
	attrArchive    = 0x20
	fatBootBackup  = 6 // sector of the backup boot sector; FSInfo's follows
	fatInfo        = 1 // sector of FSInfo
	fatBootCode    = 90
	fatUnknown     = 0xffffffff
	fatDirClusters = 64 // of one directory
)

// FAT is a FAT32 volume (Microsoft, "FAT: General Overview of On-Disk Format",
// 1.03) that was read strictly.
type FAT struct {
	Label   string
	Serial  [4]byte
	Entries []FATEntry // files and directories, in the order of the volume

	disk    Disk
	sectors int64   // of the volume
	data    int64   // offset of cluster 2, bytes
	cluster int64   // bytes
	table   []byte  // the FAT
	used    []bool  // by cluster, from cluster 2 at index 0
	stamps  []stamp // every time stamp
}

// FATEntry is a file or a directory.
type FATEntry struct {
	Path  string // absolute, "/" between names, upper case
	Dir   bool
	Size  int64 // bytes; 0 for directories
	chain []uint32
}

// stamp is a time and a date of a directory entry.
type stamp struct {
	path string
	what string
	at   [4]byte // time, date
}

// ReadFAT reads the volume that begins at the start of d. Firmware and
// operating systems overlook much; here it is an error:
//   - boot sector and FSInfo are well-formed and equal to their backups, and
//     the boot sector holds no code,
//   - both FATs are equal; each cluster in use belongs to exactly one chain
//     that ends, and no cluster is lost,
//   - names are short names in upper case, each once in its directory, none
//     deleted; "." and ".." lead where they must,
//   - a file's chain is as long as its size needs.
//
// CheckUnused covers what no file uses.
func ReadFAT(d Disk) (*FAT, error) {
	f := &FAT{disk: d}
	root, err := f.readBoot()
	if err != nil {
		return nil, err
	}
	if err := f.readDirectory("/", root, 0, 0); err != nil {
		return nil, err
	}
	return f, f.checkLost()
}

func (f *FAT) readBoot() (root uint32, err error) {
	head, err := readAll(f.disk, 0, 8*SectorSize)
	if err != nil {
		return 0, err
	}
	boot := head[:SectorSize]
	le := binary.LittleEndian
	u16 := func(at int) int64 { return int64(le.Uint16(boot[at:])) }
	u32 := func(at int) int64 { return int64(le.Uint32(boot[at:])) }
	for _, c := range []struct {
		name      string
		got, want int64
	}{
		{"signature", u16(510), 0xaa55},
		{"bytes per sector", u16(11), SectorSize},
		{"number of FATs", int64(boot[16]), 2},
		{"entries of a FAT16 root directory", u16(17), 0},
		{"16-bit sector count", u16(19), 0},
		{"media", int64(boot[21]), 0xf8},
		{"16-bit FAT size", u16(22), 0},
		{"hidden sectors", u32(28), 0},
		{"mirroring flags", u16(40), 0},
		{"version", u16(42), 0},
		{"sector of FSInfo", u16(48), fatInfo},
		{"sector of the backup", u16(50), fatBootBackup},
		{"extended signature", int64(boot[66]), 0x29},
	} {
		if c.got != c.want {
			return 0, fmt.Errorf("boot sector: %s is %d, want %d", c.name, c.got, c.want)
		}
	}
	if string(boot[82:90]) != "FAT32   " {
		return 0, fmt.Errorf("boot sector: file system type is %q, want \"FAT32   \"", boot[82:90])
	}
	for _, r := range [][2]int{{52, 64}, {65, 66}, {fatBootCode, 510}} {
		if i := nonZero(boot[r[0]:r[1]]); i >= 0 {
			return 0, fmt.Errorf("boot sector: byte %d is %#02x, want zero: it holds nothing but parameters", r[0]+i, boot[r[0]+i])
		}
	}
	f.Serial = [4]byte(boot[67:71])
	f.Label = strings.TrimRight(string(boot[71:82]), " ")
	info := head[fatInfo*SectorSize:][:SectorSize]
	if i := firstDifference(boot, head[fatBootBackup*SectorSize:][:SectorSize]); i >= 0 {
		return 0, fmt.Errorf("boot sector: its backup differs at byte %d", i)
	}
	if i := firstDifference(info, head[(fatBootBackup+1)*SectorSize:][:SectorSize]); i >= 0 {
		return 0, fmt.Errorf("FSInfo: its backup differs at byte %d", i)
	}
	perCluster, reserved, fatSectors := int64(boot[13]), u16(14), u32(36)
	f.sectors = u32(32)
	if perCluster == 0 || perCluster&(perCluster-1) != 0 {
		return 0, fmt.Errorf("boot sector: %d sectors in a cluster, want a power of two", perCluster)
	}
	if reserved < 8 || f.sectors*SectorSize > f.disk.Size() || reserved+2*fatSectors >= f.sectors {
		return 0, fmt.Errorf("boot sector: %d reserved sectors and two FATs of %d in %d sectors; the partition has %d", reserved, fatSectors, f.sectors, f.disk.Size()/SectorSize)
	}
	clusters := (f.sectors - reserved - 2*fatSectors) / perCluster
	if clusters < minClusters || clusters > maxClusters {
		return 0, fmt.Errorf("%d clusters, want %d to %d", clusters, minClusters, maxClusters)
	}
	if fatSectors*SectorSize/4 < clusters+2 || fatSectors*SectorSize/4 > clusters+2+8*SectorSize {
		return 0, fmt.Errorf("FATs of %d sectors do not fit %d clusters", fatSectors, clusters)
	}
	if off, err := firstNonZero(f.disk, 8*SectorSize, reserved*SectorSize); err != nil || off >= 0 {
		return 0, cmpZero("reserved sectors", off, err)
	}
	f.cluster = perCluster * SectorSize
	f.data = (reserved + 2*fatSectors) * SectorSize
	f.used = make([]bool, clusters)
	return uint32(u32(44)), f.readTables(info, reserved*SectorSize, fatSectors*SectorSize)
}

// readTables reads both FATs and FSInfo's idea of them.
func (f *FAT) readTables(info []byte, at, size int64) error {
	var err error
	if f.table, err = readAll(f.disk, at, int(size)); err != nil {
		return err
	}
	buf := make([]byte, zeroUnit)
	for off := int64(0); off < size; off += int64(len(buf)) {
		b := buf[:min(int64(len(buf)), size-off)]
		if err := readFull(f.disk, b, at+size+off); err != nil {
			return err
		}
		if i := firstDifference(f.table[off:off+int64(len(b))], b); i >= 0 {
			return fmt.Errorf("the FATs differ at byte %d", off+int64(i))
		}
	}
	if a, b := f.next(0), f.next(1); a != 0x0ffffff8 || b != 0x0fffffff {
		return fmt.Errorf("the FAT begins with %#08x and %#08x, want 0x0ffffff8 and 0x0fffffff", a, b)
	}
	tail := 4 * (len(f.used) + 2)
	if i := nonZero(f.table[tail:]); i >= 0 {
		return fmt.Errorf("the FAT has data at byte %d, behind its last cluster", tail+i)
	}
	le := binary.LittleEndian
	if le.Uint32(info) != 0x41615252 || le.Uint32(info[484:]) != 0x61417272 || le.Uint32(info[508:]) != 0xaa550000 {
		return errors.New("FSInfo: wrong signatures")
	}
	for _, r := range [][2]int{{4, 484}, {496, 508}} {
		if i := nonZero(info[r[0]:r[1]]); i >= 0 {
			return fmt.Errorf("FSInfo: byte %d is %#02x, want zero", r[0]+i, info[r[0]+i])
		}
	}
	var free uint32
	for c := range f.used {
		if f.next(uint32(c)+2) == 0 {
			free++
		}
	}
	if n := le.Uint32(info[488:]); n != fatUnknown && n != free {
		return fmt.Errorf("FSInfo: %d free clusters, the FAT has %d", n, free)
	}
	if n := le.Uint32(info[492:]); n != fatUnknown && (n < 2 || int64(n) >= int64(len(f.used))+2) {
		return fmt.Errorf("FSInfo: next free cluster is %d of %d", n, len(f.used)+2)
	}
	return nil
}

// next returns the FAT's entry of a cluster that is within the table.
func (f *FAT) next(cluster uint32) uint32 { return binary.LittleEndian.Uint32(f.table[4*cluster:]) }

// chain returns the clusters of a chain, at most limit of them, and claims them.
func (f *FAT) chain(first uint32, limit int64) ([]uint32, error) {
	var out []uint32
	for c := first; ; {
		if c < 2 || int64(c)-2 >= int64(len(f.used)) {
			return nil, fmt.Errorf("its chain leads to cluster %d, the volume has 2 to %d", c, len(f.used)+1)
		}
		if f.used[c-2] {
			return nil, fmt.Errorf("cluster %d is used twice", c)
		}
		if int64(len(out)) == limit {
			return nil, fmt.Errorf("its chain is longer than %d clusters", limit)
		}
		f.used[c-2] = true
		out = append(out, c)
		switch n := f.next(c); {
		case n >= fatEndOfChain && n <= 0x0fffffff:
			return out, nil
		default:
			c = n
		}
	}
}

// offset returns where a cluster is, bytes.
func (f *FAT) offset(cluster uint32) int64 { return f.data + int64(cluster-2)*f.cluster }

func (f *FAT) readDirectory(path string, first, parent uint32, depth int) error {
	if depth > maxFATDepth {
		return fmt.Errorf("directory %s is deeper than %d", path, maxFATDepth)
	}
	chain, err := f.chain(first, fatDirClusters)
	if err != nil {
		return fmt.Errorf("directory %s: %w", path, err)
	}
	if path != "/" {
		f.Entries = append(f.Entries, FATEntry{Path: path, Dir: true, chain: chain})
	}
	var b []byte
	for _, c := range chain {
		part, err := readAll(f.disk, f.offset(c), int(f.cluster))
		if err != nil {
			return err
		}
		b = append(b, part...)
	}
	names := map[string]bool{}
	label := false
	for n := 0; len(b) >= fatEntrySize; n++ {
		e := b[:fatEntrySize]
		if e[0] == 0 {
			if i := nonZero(b); i >= 0 {
				return fmt.Errorf("directory %s: data behind its end, in entry %d", path, n+i/fatEntrySize)
			}
			return nil
		}
		b = b[fatEntrySize:]
		if len(f.Entries) >= maxFATEntries {
			return fmt.Errorf("more than %d files", maxFATEntries)
		}
		switch isLabel := e[11] == attrVolume; {
		case isLabel && (path != "/" || label):
			return fmt.Errorf("directory %s: a second volume label", path)
		case isLabel:
			label = true
			if got := strings.TrimRight(string(e[:11]), " "); got != f.Label {
				return fmt.Errorf("volume label is %q in the root directory, %q in the boot sector", got, f.Label)
			}
			if i := nonZero(e[26:]); e[12] != 0 || e[20] != 0 || e[21] != 0 || i >= 0 {
				return errors.New("the volume label has a size or a cluster")
			}
			f.stamp("/", e)
			continue
		}
		if err := f.readEntry(path, e, n, first, parent, depth, names); err != nil {
			return err
		}
	}
	return nil
}

// readEntry reads the n-th entry of a directory.
func (f *FAT) readEntry(dir string, e []byte, n int, self, parent uint32, depth int, names map[string]bool) error {
	le := binary.LittleEndian
	first := uint32(le.Uint16(e[20:]))<<16 | uint32(le.Uint16(e[26:]))
	size := int64(le.Uint32(e[28:]))
	isDir := e[11] == attrDirectory
	if !isDir && e[11] != 0 && e[11] != attrArchive {
		return fmt.Errorf("directory %s: entry %d has attributes %#02x, want those of a file or a directory with a short name", dir, n, e[11])
	}
	if e[12] != 0 || e[13] != 0 {
		return fmt.Errorf("directory %s: entry %d has reserved bits %#02x and hundredths %d, want zero", dir, n, e[12], e[13])
	}
	if isDir && size != 0 {
		return fmt.Errorf("directory %s: entry %d is a directory with a size", dir, n)
	}
	dots := bytes.TrimRight(e[:11], " ")
	if dir != "/" && n < 2 {
		want, to := ".", self
		if n == 1 {
			want, to = "..", parent
		}
		if string(dots) != want || !isDir || first != to {
			return fmt.Errorf("directory %s: entry %d is %q to cluster %d, want %q to cluster %d", dir, n, dots, first, want, to)
		}
		f.stamp(dir+"/"+want, e)
		return nil
	}
	name, err := shortName([11]byte(e[:11]))
	if err != nil {
		return fmt.Errorf("directory %s: entry %d: %w", dir, n, err)
	}
	if names[name] {
		return fmt.Errorf("directory %s: %s is there twice", dir, name)
	}
	names[name] = true
	path := strings.TrimSuffix(dir, "/") + "/" + name
	f.stamp(path, e)
	if isDir {
		if dir == "/" {
			self = 0 // that is how the root directory is written there
		}
		return f.readDirectory(path, first, self, depth+1)
	}
	entry := FATEntry{Path: path, Size: size}
	if size > 0 {
		need := (size + f.cluster - 1) / f.cluster
		if entry.chain, err = f.chain(first, need); err != nil {
			return fmt.Errorf("%s: %w", path, err)
		}
		if got := int64(len(entry.chain)); got != need {
			return fmt.Errorf("%s: its chain has %d clusters, its %d bytes need %d", path, got, size, need)
		}
	} else if first != 0 {
		return fmt.Errorf("%s: it is empty but has cluster %d", path, first)
	}
	f.Entries = append(f.Entries, entry)
	return nil
}

// shortName returns a name of eight and three characters.
func shortName(b [11]byte) (string, error) {
	part := func(b []byte) (string, bool) {
		s := strings.TrimRight(string(b), " ")
		for _, c := range []byte(s) {
			if (c < 'A' || c > 'Z') && (c < '0' || c > '9') && !strings.ContainsRune("_-~$!#&()@^`{}'%", rune(c)) {
				return "", false
			}
		}
		return s, true
	}
	base, ok1 := part(b[:8])
	ext, ok2 := part(b[8:])
	if !ok1 || !ok2 || base == "" {
		return "", fmt.Errorf("name %q is not a short name in upper case", b)
	}
	if ext == "" {
		return base, nil
	}
	return base + "." + ext, nil
}

// stamp notes the time stamps of an entry.
func (f *FAT) stamp(path string, e []byte) {
	f.stamps = append(f.stamps,
		stamp{path, "creation", [4]byte(e[14:18])},
		stamp{path, "access", [4]byte{2: e[18], 3: e[19]}}, // a date only
		stamp{path, "write", [4]byte(e[22:26])})
}

// checkLost finds clusters that the FAT has in use but no file.
func (f *FAT) checkLost() error {
	for i, used := range f.used {
		if c := uint32(i) + 2; !used && f.next(c) != 0 {
			return fmt.Errorf("cluster %d is marked %#08x, but no file has it", c, f.next(c))
		}
	}
	return nil
}

// ReadFile returns the content of a file of at most max bytes.
func (f *FAT) ReadFile(e FATEntry, max int64) ([]byte, error) {
	if e.Dir || e.Size > max {
		return nil, fmt.Errorf("read %s: it is a directory, or its %d bytes are more than %d", e.Path, e.Size, max)
	}
	b := make([]byte, e.Size)
	err := f.runs(e.chain, func(off, at, n int64) error {
		return readFull(f.disk, b[at:min(at+n, e.Size)], off)
	})
	return b, err
}

// runs calls fn for each contiguous part of a chain: its offset on the disk,
// its offset in the file, its length.
func (f *FAT) runs(chain []uint32, fn func(off, at, n int64) error) error {
	for i := 0; i < len(chain); {
		n := 1
		for i+n < len(chain) && chain[i+n] == chain[i]+uint32(n) {
			n++
		}
		if err := fn(f.offset(chain[i]), int64(i)*f.cluster, int64(n)*f.cluster); err != nil {
			return err
		}
		i += n
	}
	return nil
}

// CheckUnused checks that everything in the partition that no file and no
// structure uses is zero: free clusters, the rest of each file's last cluster,
// and what follows the volume.
func (f *FAT) CheckUnused() error {
	for _, e := range f.Entries {
		if e.Dir || e.Size%f.cluster == 0 {
			continue
		}
		last := f.offset(e.chain[len(e.chain)-1])
		if off, err := firstNonZero(f.disk, last+e.Size%f.cluster, last+f.cluster); err != nil || off >= 0 {
			return cmpZero("the cluster behind the end of "+e.Path, off, err)
		}
	}
	for i := 0; i < len(f.used); i++ {
		n := 0
		for i+n < len(f.used) && !f.used[i+n] {
			n++
		}
		if n == 0 {
			continue
		}
		from := f.offset(uint32(i) + 2)
		if off, err := firstNonZero(f.disk, from, from+int64(n)*f.cluster); err != nil || off >= 0 {
			return cmpZero("free clusters", off, err)
		}
		i += n - 1
	}
	end := f.data + int64(len(f.used))*f.cluster
	if off, err := firstNonZero(f.disk, end, f.disk.Size()); err != nil || off >= 0 {
		return cmpZero("the space behind the volume", off, err)
	}
	return nil
}

// cmpZero is the error for data in a place that must be zero.
func cmpZero(where string, off int64, err error) error {
	if err != nil {
		return fmt.Errorf("%s: %w", where, err)
	}
	return fmt.Errorf("%s: there is data at byte %d of the partition, want only zeros", where, off)
}

package manifest

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"path/filepath"
	"strings"
	"testing"
)

// good is a small manifest with something in every field that Decode checks.
func good() *Manifest {
	digest := func(s string) SHA256 { return sha256.Sum256([]byte(s)) }
	const esp = "c12a7328-f81f-11d2-ba4b-00a0c93ec93b"
	return &Manifest{
		Schema: Schema, Name: "shop", Version: "1", Arch: "amd64", Epoch: 1700000000,
		LockDigest: digest("lock"), Kubernetes: Kubernetes{Distro: "k3s", Version: "v1.34.1+k3s1"},
		Artifacts: []Artifact{
			{Kind: KindDisk, Name: "disk.raw", Size: 1 << 20, SHA256: digest("disk")},
			{Kind: KindUKI, Name: "uki.efi", Size: 4096, SHA256: digest("uki")},
		},
		Disk: Disk{Size: 1 << 20, ChunkSize: 1 << 19, Chunks: []SHA256{digest("chunk"), {}}, Partitions: []Partition{
			{Number: 1, Role: RoleESP, Label: RoleESP, Type: esp, GUID: "00000000-0000-4000-8000-000000000001", FirstLBA: 34, Sectors: 100},
			{Number: 2, Role: RoleRootA, Label: RoleRootA, Type: esp, GUID: "00000000-0000-4000-8000-000000000002", FirstLBA: 134, Sectors: 2048 - 33 - 134},
		}},
		Root:      Root{FSType: "erofs", Size: 8192, RootHash: digest("root")},
		UKI:       UKI{Cmdline: "quiet", Sections: []Section{{Name: ".linux", Size: 4096, SHA256: digest("linux")}}},
		Installer: UKI{Sections: []Section{{Name: ".linux", Size: 4096, SHA256: digest("linux")}}},
		Boots: []Boot{{Way: BootDisk, Artifact: KindUKI, SecureBoot: true, PCRs: []PCR{
			{Index: 4, Events: []Event{{Type: TypeSeparator, Name: "separator", Digests: Digests{"sha256": digest("x").String()}}}},
			{Index: 7, Values: Digests{"sha256": digest("y").String()}},
		}}},
	}
}

func encode(t testing.TB, m *Manifest) []byte {
	t.Helper()
	b, err := m.Encode()
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestDecodeReadsWhatEncodeWrites(t *testing.T) {
	b := encode(t, good())
	m, err := Decode(b)
	if err != nil {
		t.Fatal(err)
	}
	if again := encode(t, m); !bytes.Equal(again, b) {
		t.Errorf("encoded again it is\n%s\nwant\n%s", again, b)
	}
	if a, ok := m.Artifact(KindUKI); !ok || a.Name != "uki.efi" {
		t.Errorf("the UKI is %+v, %t", a, ok)
	}
	if boot, ok := m.Boot(KindUKI, BootDisk); !ok || len(boot.PCRs) != 2 {
		t.Errorf("the boot is %+v, %t", boot, ok)
	}
}

func TestDecodeRefusesWhatNoBuildWrites(t *testing.T) {
	name := func(s string) func(*Manifest) { return func(m *Manifest) { m.Artifacts[1].Name = s } }
	size := func(n int64) func(*Manifest) { return func(m *Manifest) { m.Artifacts[1].Size = n } }
	second := func(edit func(*Partition)) func(*Manifest) {
		return func(m *Manifest) { edit(&m.Disk.Partitions[1]) }
	}
	const plain, table = "is not a plain file name", "partition 2 (root-a)"
	for claim, c := range map[string]struct {
		edit func(*Manifest)
		want string
	}{
		"another schema": {func(m *Manifest) { m.Schema = "sealift.dev/manifest/v2" }, "schema is"},

		"the directory above":       {name(".."), plain},
		"the directory":             {name("."), plain},
		"a name without characters": {name(""), plain},
		"a way up":                  {name("../uki.efi"), plain},
		"a directory":               {name("a/uki.efi"), plain},
		"an absolute path":          {name("/etc/passwd"), plain},
		"a backslash":               {name(`..\uki.efi`), plain},
		"a NUL":                     {name("uki.efi\x00.txt"), plain},
		"a line break":              {name("uki.efi\nuki"), plain},
		"an escape sequence":        {name("\x1b[2Juki.efi"), plain},
		"a direction mark":          {name("uki\u202eife."), plain},
		"a hidden file":             {name(".uki.efi"), plain},
		"a long name":               {name(strings.Repeat("x", 256)), plain},

		"no kind":             {func(m *Manifest) { m.Artifacts[1].Kind = "" }, "artifact uki.efi has no kind"},
		"a kind twice":        {func(m *Manifest) { m.Artifacts[1].Kind = KindDisk }, `artifact uki.efi: kind "disk" is there twice`},
		"a name twice":        {name("disk.raw"), "artifact disk.raw is there twice"},
		"no digest":           {func(m *Manifest) { m.Artifacts[1].SHA256 = SHA256{} }, "artifact uki.efi has no SHA-256"},
		"a negative size":     {size(-1), "artifact uki.efi: size -1"},
		"no size":             {size(0), "artifact uki.efi: size 0"},
		"an absurd size":      {size(1<<63 - 1), "artifact uki.efi: size 9223372036854775807"},
		"a negative root":     {func(m *Manifest) { m.Root.Size = -4096 }, "root: size -4096"},
		"a root of no blocks": {func(m *Manifest) { m.Root.Size = 4097 }, "root: size 4097"},
		"a negative section":  {func(m *Manifest) { m.UKI.Sections[0].Size = -1 }, `uki: size -1 of section ".linux"`},
		"an absurd section":   {func(m *Manifest) { m.Installer.Sections[0].Size = 1 << 60 }, "installer: size"},

		"no disk":                {func(m *Manifest) { m.Disk.Size = 0 }, "disk: size 0"},
		"a negative disk":        {func(m *Manifest) { m.Disk.Size = -1 << 20 }, "disk: size -1048576"},
		"part of a chunk":        {func(m *Manifest) { m.Disk.Size += 512 }, "disk: size"},
		"chunks of nothing":      {func(m *Manifest) { m.Disk.ChunkSize = 0 }, "chunk size 0"},
		"negative chunks":        {func(m *Manifest) { m.Disk.ChunkSize = -512 }, "chunk size -512"},
		"huge chunks":            {func(m *Manifest) { m.Disk.ChunkSize, m.Disk.Size = 1<<30, 2<<30 }, "chunk size 1073741824"},
		"a chunk too few":        {func(m *Manifest) { m.Disk.Chunks = m.Disk.Chunks[1:] }, "got 1 chunks, want 2"},
		"a disk without chunks":  {func(m *Manifest) { m.Disk.Chunks = nil }, "got 0 chunks, want 2"},
		"no room for partitions": {func(m *Manifest) { m.Disk.Size, m.Disk.ChunkSize = 1024, 512 }, "no room for a partition table"},

		"number 0":              {second(func(p *Partition) { p.Number = 0 }), "partition 0 (root-a): number is not between 1 and 128"},
		"number 129":            {second(func(p *Partition) { p.Number = 129 }), "number is not between"},
		"a number twice":        {second(func(p *Partition) { p.Number = 1 }), "partition 1 (root-a): its number"},
		"a role twice":          {second(func(p *Partition) { p.Role = RoleESP }), "partition 2 (esp): its number, role"},
		"a GUID twice":          {func(m *Manifest) { m.Disk.Partitions[1].GUID = m.Disk.Partitions[0].GUID }, table + ": its number, role or GUID"},
		"no role":               {second(func(p *Partition) { p.Role = "" }), `role is ""`},
		"a state in an image":   {second(func(p *Partition) { p.Role = RoleState }), `role is "state"`},
		"no GUID":               {second(func(p *Partition) { p.GUID = "" }), "want lower-case GUIDs"},
		"a GUID in capitals":    {second(func(p *Partition) { p.GUID = "0000000A-0000-4000-8000-000000000002" }), "want lower-case GUIDs"},
		"no type":               {second(func(p *Partition) { p.Type = "linux" }), "want lower-case GUIDs"},
		"no sectors":            {second(func(p *Partition) { p.Sectors = 0 }), table + " has no sectors"},
		"in the table":          {second(func(p *Partition) { p.FirstLBA, p.Sectors = 2, 10 }), table + " starts at sector 2"},
		"in the second table":   {second(func(p *Partition) { p.Sectors++ }), table + " ends outside the image"},
		"behind the end":        {second(func(p *Partition) { p.FirstLBA = 1 << 40 }), table + " ends outside the image"},
		"an end that overflows": {second(func(p *Partition) { p.Sectors = 1<<64 - 1 }), table + " ends outside the image"},
		"one over another":      {second(func(p *Partition) { p.FirstLBA-- }), "partitions 1 (esp) and 2 (root-a) overlap"},
		"the same place":        {second(func(p *Partition) { p.FirstLBA, p.Sectors = 34, 100 }), "overlap"},
		"one in another, before it": {func(m *Manifest) {
			m.Disk.Partitions[0].FirstLBA, m.Disk.Partitions[0].Sectors = 500, 10
		}, "partitions 2 (root-a) and 1 (esp) overlap"},

		"PCRs in disorder": {func(m *Manifest) { m.Boots[0].PCRs[1].Index = 4 }, "PCR 4 after 4"},
		"a negative PCR":   {func(m *Manifest) { m.Boots[0].PCRs[0].Index = -1 }, "PCR -1"},
		"an unknown bank":  {func(m *Manifest) { m.Boots[0].PCRs[1].Values = Digests{"sha1": ""} }, "want sha256 or sha384"},
		"a short digest":   {func(m *Manifest) { m.Boots[0].PCRs[1].Values = Digests{"sha384": "00"} }, "want 96 hex digits"},
		"too many events":  {func(m *Manifest) { m.Boots[0].PCRs[0].Events = make([]Event, maxEvents+1) }, "at most 128"},
	} {
		m := good()
		c.edit(m)
		if _, err := Decode(encode(t, m)); err == nil || !strings.HasPrefix(err.Error(), "decode manifest: ") || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: got %v, want %q", claim, err, c.want)
		}
	}
}

func TestDecodeRefusesOtherText(t *testing.T) {
	text := string(encode(t, good()))
	for claim, c := range map[string]struct{ text, want string }{
		"nothing":            {"", "EOF"},
		"no object":          {"[]", "cannot unmarshal"},
		"null":               {"null", "schema is"},
		"half":               {text[:len(text)/2], "EOF"},
		"an unknown field":   {strings.Replace(text, `"epoch"`, `"epoch2"`, 1), "unknown field"},
		"more text":          {text + "{}", "data after the document"},
		"a NUL behind it":    {text + "\x00", "data after the document"},
		"a long digest":      {strings.Replace(text, `"sha256": "`, `"sha256": "00`, 1), "got 66 characters"},
		"a digest of z":      {strings.Replace(text, `"lockDigest": "`+text[strings.Index(text, `"lockDigest": "`)+15:][:1], `"lockDigest": "z`, 1), "invalid byte"},
		"a size with a dot":  {strings.Replace(text, `"size": 4096`, `"size": 4096.5`, 1), "cannot unmarshal"},
		"a size beyond 2^63": {strings.Replace(text, `"size": 4096`, `"size": 9223372036854775808`, 1), "cannot unmarshal"},
		"a negative sector":  {strings.Replace(text, `"firstLBA": 34`, `"firstLBA": -1`, 1), "cannot unmarshal"},
		"too much":           {text + strings.Repeat(" ", MaxSize), "at most 8388608 allowed"},
	} {
		if _, err := Decode([]byte(c.text)); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: got %v, want %q", claim, err, c.want)
		}
	}
}

func FuzzDecode(f *testing.F) {
	f.Add(encode(f, good()))
	var compact bytes.Buffer
	if err := json.Compact(&compact, encode(f, good())); err != nil {
		f.Fatal(err)
	}
	f.Add(compact.Bytes())
	for _, edit := range []func(*Manifest){
		func(m *Manifest) { *m = Manifest{Schema: Schema} },
		func(m *Manifest) { m.Artifacts, m.Disk.Partitions, m.Boots = nil, nil, nil },
		func(m *Manifest) { m.Artifacts[0].Name = "../disk.raw" },
		func(m *Manifest) { m.Disk.Partitions[1].Sectors = 1<<64 - 1 },
		func(m *Manifest) { m.Disk.Size, m.Disk.ChunkSize = 1<<62, 512 },
	} {
		m := good()
		edit(m)
		f.Add(encode(f, m))
	}
	f.Add([]byte("{}"))
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := Decode(b)
		if err != nil {
			if m != nil || !strings.HasPrefix(err.Error(), "decode manifest: ") {
				t.Errorf("got %v and %v", m, err)
			}
			return
		}
		const dir = "/images/shop"
		seen := map[string]bool{}
		for _, a := range m.Artifacts {
			if filepath.Dir(filepath.Join(dir, a.Name)) != dir || filepath.Base(a.Name) != a.Name || seen[a.Name] || a.Size <= 0 {
				t.Errorf("artifact %+v was accepted", a)
			}
			seen[a.Name] = true
		}
		if int64(len(m.Disk.Chunks))*m.Disk.ChunkSize != m.Disk.Size {
			t.Errorf("%d chunks of %d bytes on a disk of %d", len(m.Disk.Chunks), m.Disk.ChunkSize, m.Disk.Size)
		}
		for i, p := range m.Disk.Partitions {
			if p.Sectors == 0 || p.FirstLBA+p.Sectors < p.FirstLBA || p.FirstLBA+p.Sectors > uint64(m.Disk.Size/512) {
				t.Errorf("partition %+v on a disk of %d bytes", p, m.Disk.Size)
			}
			for _, q := range m.Disk.Partitions[:i] {
				if p.FirstLBA < q.FirstLBA+q.Sectors && q.FirstLBA < p.FirstLBA+p.Sectors {
					t.Errorf("partitions %+v and %+v overlap", p, q)
				}
			}
		}
		text := encode(t, m)
		if len(text) > MaxSize {
			return
		}
		again, err := Decode(text)
		if err != nil {
			t.Fatalf("encoded again: %v", err)
		}
		if !bytes.Equal(encode(t, again), text) {
			t.Error("encoded twice it differs")
		}
	})
}

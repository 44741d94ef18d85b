package disk

import (
	"fmt"

	"github.com/diskfs/go-diskfs/partition/gpt"
)

// Window returns the window on the partition of that role.
func (l *Layout) Window(f File, role string) (*Window, error) {
	for _, p := range l.Partitions {
		if p.Role == role {
			return NewWindow(f, "partition "+role, int64(p.FirstLBA)*SectorSize, int64(p.Sectors)*SectorSize), nil
		}
	}
	return nil, fmt.Errorf("disk layout has no partition %s", role)
}

// WriteTable writes the protective MBR and both partition tables.
func (l *Layout) WriteTable(f File) error {
	t := &gpt.Table{
		LogicalSectorSize:  SectorSize,
		PhysicalSectorSize: SectorSize,
		GUID:               l.GUID.String(),
		ProtectiveMBR:      true,
	}
	for _, p := range l.Partitions {
		t.Partitions = append(t.Partitions, &gpt.Partition{
			Index: p.Number,
			Start: p.FirstLBA,
			End:   p.FirstLBA + p.Sectors - 1,
			Type:  gpt.Type(p.Type),
			Name:  p.Label,
			GUID:  p.GUID,
		})
	}
	if err := t.Write(&storage{NewWindow(f, "partition table", 0, l.Size)}, l.Size); err != nil {
		return fmt.Errorf("write partition table: %w", err)
	}
	return nil
}

package disk

import (
	"fmt"

	"github.com/diskfs/go-diskfs/partition/gpt"
)

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
	w := NewWindow(f, "partition table", 0, l.Size)
	if err := t.Write(&storage{w}, l.Size); err != nil {
		if w.failed != nil {
			err = w.failed
		}
		return fmt.Errorf("write partition table: %w", err)
	}
	return nil
}

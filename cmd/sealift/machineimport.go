package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/sealift/sealift/attest/api"
	"github.com/sealift/sealift/attest/client/operator"
	"github.com/sealift/sealift/profiles"
)

func newMachineImportCommand(e *env) *cobra.Command {
	var o operatorOptions
	cmd := &cobra.Command{
		Use:   "import FILE",
		Short: "Enrol the machines that an installation medium has installed",
		Long: `Reads install records, one JSON object a line, and hands them to the service, as a
provisioner does on a factory network. An installation medium that can be written
has them in ` + profiles.MediumRecords + ` (mount -o ro /dev/sdb /mnt). The service takes a record once, so a file may be
imported again. Whoever had the medium can have changed the records: import only
from one that never left your hands, and approve the machines one by one otherwise.

Example:
  sealift machine import /mnt/records.jsonl` + exitStatus,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			records, err := readRecords(args[0])
			if err != nil {
				return err
			}
			return o.do(func(client *operator.Client) error {
				return importRecords(cmd.Context(), e, client, args[0], records)
			})
		},
	}
	o.addFlags(cmd)
	return cmd
}

// importRecord is an install record and the line that it is from.
type importRecord struct {
	api.InstallRecord
	line int
}

// readRecords reads all records before any is used. Empty lines are skipped.
func readRecords(file string) ([]importRecord, error) {
	b, err := readFile(file, profiles.MediumRecordsSize)
	if err != nil {
		return nil, err
	}
	var all []importRecord
	n := 0
	for line := range bytes.Lines(b) {
		n++
		if line = bytes.TrimSpace(line); len(line) == 0 {
			continue
		}
		r := importRecord{line: n}
		if err := json.Unmarshal(line, &r.InstallRecord); err != nil {
			return nil, usage{fmt.Errorf("%s:%d: not an install record: %w", file, n, err)}
		}
		if len(r.EKPublic) == 0 {
			return nil, usage{fmt.Errorf("%s:%d: not an install record: it has no endorsement key", file, n)}
		}
		all = append(all, r)
	}
	if len(all) == 0 {
		return nil, withHint(usage{fmt.Errorf("%s holds no install record", file)}, "a medium that cannot be written keeps none: sealift machine list --state pending")
	}
	return all, nil
}

func importRecords(ctx context.Context, e *env, client *operator.Client, file string, records []importRecord) error {
	var machines []api.Machine
	for _, r := range records {
		m, err := client.Install(ctx, &r.InstallRecord)
		if err != nil {
			return fmt.Errorf("%s:%d: disk %s: %w", file, r.line, plain(r.DiskGUID), err)
		}
		machines = append(machines, *m)
	}
	return printMachines(e, machines)
}

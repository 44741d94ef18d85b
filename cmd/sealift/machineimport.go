package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"github.com/sealift/sealift/attest/api"
	"github.com/sealift/sealift/attest/client/operator"
	"github.com/sealift/sealift/profiles"
)

func newMachineImportCommand(e *env) *cobra.Command {
	var o operatorOptions
	var apply, replace bool
	cmd := &cobra.Command{
		Use:   "import FILE",
		Short: "Enrol machines beforehand from a list, or those that a medium has installed",
		Long: `A file that ends in .csv is a list of machines that are to come, with a header and
the columns serial (SMBIOS type 1), ek, and, if you like, model and note. ek is a
SHA-256 of the TPM's endorsement key in hex, in any form that makers deliver: of its
SubjectPublicKeyInfo, of the public key in that, of its public area (the TPM Name), or
of its certificate. The list is checked as a whole, and only with --apply is it taken.
A machine of the list is enrolled by its first accepted evidence, with the disk that
it has then, and must claim the serial number of the list. The same file can be
imported again; --replace corrects lines whose machine has not shown up.

Any other file holds install records, one JSON object a line, which are handed to the
service as a provisioner does on a factory network. An installation medium that can be written
has them in ` + profiles.MediumRecords + ` (mount -o ro /dev/sdb /mnt). The service takes a record once, so a file may be
imported again. Whoever had the medium can have changed the records: import only
from one that never left your hands, and approve the machines one by one otherwise.

Example:
  sealift machine import delivery-17.csv --apply
  sealift machine import /mnt/records.jsonl` + exitStatus,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if strings.EqualFold(filepath.Ext(args[0]), ".csv") {
				b, err := readFile(args[0], maxListSize)
				if err != nil {
					return err
				}
				lines, err := parseList(args[0], b)
				if err != nil {
					return err
				}
				return o.do(func(client *operator.Client) error {
					return importList(cmd.Context(), e, client, args[0], lines, apply, replace)
				})
			}
			if apply || replace {
				return usage{errors.New("--apply and --replace are for a list, whose name ends in .csv")}
			}
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
	cmd.Flags().BoolVar(&apply, "apply", false, "take the list; otherwise it is only checked")
	cmd.Flags().BoolVar(&replace, "replace", false, "correct what an earlier list said of machines that have not shown up")
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

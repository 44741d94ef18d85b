package backup

import (
	"context"
	"crypto/ecdsa"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"iter"
	"time"

	"github.com/sealift/sealift/attest"
	"github.com/sealift/sealift/attest/api"
	"github.com/sealift/sealift/attest/audit"
	"github.com/sealift/sealift/attest/server"
	"github.com/sealift/sealift/image/manifest"
)

// ErrUnsignedLog refuses a log without a signed head.
var ErrUnsignedLog = refuse("the audit log has no signed head, so anybody could have made it")

// Order says what to restore. All fields are required unless marked Optional.
type Order struct {
	Backup io.ReadSeeker
	Key    *ecdsa.PublicKey // release key of the fleet
	// FormerKeys are those that Key replaced, the latest last. What they signed is
	// taken, too. Optional.
	FormerKeys []*ecdsa.PublicKey
	// Log is an exported audit log of the same service that was written
	// later. It may begin anywhere up to the entry after the backup's last.
	// Optional.
	Log io.ReadSeeker
	// UnsignedLog takes a Log that has no signed head, which anybody could have
	// made. With Head it need have none.
	UnsignedLog bool
	// Head is the hash of the last entry that the service ever wrote, as it
	// was kept elsewhere. Backup and Log must end in it, and nothing was lost
	// then. Optional; without it the restored service is held.
	Head manifest.SHA256
	By   string // who restores
	// SignHead signs where the restored log ends, for those who saw another end.
	// Optional; without it a service reads the whole log at its start.
	SignHead func(audit.HeadStatement) (*audit.Envelope, error)
	Reason   string
	Now      time.Time
}

// Report says what a restore did, or would do.
type Report struct {
	Backup      *Manifest
	Log         audit.Head           // where the restored log's old part ends
	Head        audit.Head           // of the restored log
	Replayed    int64                // entries after the backup's
	Complete    bool                 // nothing was lost
	NotReplayed map[audit.Kind]int64 // what could not be repeated, by the kind of entry that would tell it
	// Held: nothing is released until the restore is accepted. Unsettled: machines
	// that are enrolled from now on must start once more. Both also if an earlier
	// restore of the same service was left so.
	Held, Unsettled bool
	LostKeys        []attest.MachineID // machines to install again: their disk key was made after the backup
	// Missing is what could not be rebuilt and a person must mend, machine by
	// machine, LostKeys among it. MustStart are the machines that must start anew
	// once before their reports are accepted again, because they had a release
	// after the backup, or a first report that may be lost.
	Missing, MustStart []api.RestoreMissing
}

// Restore verifies the whole of the backup and of the log, and then has load,
// which is the Load of a server.Archive that is empty, store everything in one go.
// If load is nil it only says what it would do. A *RefusedError says that one of
// the files may not be used.
func Restore(ctx context.Context, load func(context.Context, iter.Seq2[server.Record, error]) error, o *Order) (*Report, error) {
	// The signature comes last: before it is checked nothing is kept, so that a
	// small file which somebody made, and which is large when it is read, does
	// not fill the memory.
	if _, err := readBackup(o, func(server.Record) error { return ctx.Err() }); err != nil {
		return nil, err
	}
	recovery := server.NewRecovery()
	var policies audit.PolicyMark
	m, err := readBackup(o, func(rec server.Record) error {
		recovery.Add(rec)
		if rec.Entry != nil {
			if err := policies.Note(*rec.Entry); err != nil {
				return refuse("%v", err)
			}
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	report := &Report{Backup: m, Log: m.Head}
	if o.Log != nil {
		if report.Log, err = readLog(o, m.Head, func(e audit.Entry) error {
			report.Replayed++
			if err := policies.Note(e); err != nil {
				return refuse("%v", err)
			}
			return recovery.Replay(e)
		}); err != nil {
			return nil, err
		}
	}
	if !o.Head.IsZero() && report.Log.Hash != o.Head {
		return nil, refuse("what is given ends at entry %d, %s, and not with the last entry that was named, %s", report.Log.Seq, report.Log.Hash, o.Head)
	}
	rest, end, err := recovery.Finish(report.Log, audit.Restore{
		By: o.By, Reason: o.Reason, Taken: m.Taken, Backup: m.Head, Log: report.Log, Complete: !o.Head.IsZero(),
	}, o.Now)
	if err != nil {
		return nil, err
	}
	var entry audit.Restore
	if err := json.Unmarshal(end[0].Data, &entry); err != nil {
		return nil, fmt.Errorf("restore: %w", err)
	}
	report.Head, report.Complete, report.NotReplayed = end[len(end)-1].Head(), entry.Complete, entry.NotReplayed
	report.Held, report.Unsettled = recovery.Held()
	report.LostKeys, report.Missing, report.MustStart = recovery.Lost(), recovery.Missing(), recovery.MustStart()
	if o.SignHead != nil {
		signed, err := o.SignHead(audit.HeadStatement{Head: report.Head, Time: o.Now.UTC(), Policy: policies, Restored: o.Now.UTC()})
		if err != nil {
			return nil, fmt.Errorf("restore: %w", err)
		}
		body, err := json.Marshal(signed)
		if err != nil {
			return nil, fmt.Errorf("restore: %w", err)
		}
		rest = append(rest, server.Record{Document: &server.Document{Kind: server.KindSignedHead, Name: server.NameSignedHead, Revision: 1, Body: body}})
	}
	if load == nil {
		return report, nil
	}
	if err := load(ctx, o.records(report, rest, end)); err != nil {
		return nil, err
	}
	return report, nil
}

func (o *Order) keys() audit.ReleaseKeys {
	return audit.ReleaseKeys{Present: o.Key, Former: o.FormerKeys}
}

// records are those of the restored store. The files are read, and verified, once
// more: should they be others than before, the last record is an error.
func (o *Order) records(report *Report, rest []server.Record, end []audit.Entry) iter.Seq2[server.Record, error] {
	return func(yield func(server.Record, error) bool) {
		again := server.NewRecovery()
		put := func(rec server.Record) error {
			if !yield(rec, nil) {
				return errStopped
			}
			return nil
		}
		m, err := readBackup(o, func(rec server.Record) error {
			if !again.Add(rec) {
				return nil // as Finish returned it
			}
			return put(rec)
		})
		if err == nil && (m.Digest != report.Backup.Digest || m.Head != report.Backup.Head) {
			err = refuse("the file changed while it was read")
		}
		if err == nil && o.Log != nil {
			var head audit.Head
			head, err = readLog(o, m.Head, func(e audit.Entry) error { return put(server.Record{Entry: &e}) })
			if err == nil && head != report.Log {
				err = refuse("the audit log changed while it was read")
			}
		}
		for i := 0; err == nil && i < len(rest); i++ {
			err = put(rest[i])
		}
		for i := 0; err == nil && i < len(end); i++ {
			err = put(server.Record{Entry: &end[i]})
		}
		if err != nil && !errors.Is(err, errStopped) {
			yield(server.Record{}, err)
		}
	}
}

// readBackup passes each record on and returns the manifest, after all was
// verified.
func readBackup(o *Order, each func(server.Record) error) (*Manifest, error) {
	if _, err := o.Backup.Seek(0, io.SeekStart); err != nil {
		return nil, fmt.Errorf("read backup: %w", err)
	}
	r, err := NewReader(o.Backup, o.keys())
	if err != nil {
		return nil, err
	}
	defer r.Close()
	for rec, err := range r.Records() {
		if err == nil {
			err = each(rec)
		}
		if err != nil {
			return nil, err
		}
	}
	return r.Manifest(), nil
}

// readLog passes on the entries after head and returns the log's head. The log
// must have the entry that head names, or begin with the one after it, and end with
// a head that the service signed. What it passes on is not to be trusted before.
func readLog(o *Order, head audit.Head, each func(audit.Entry) error) (audit.Head, error) {
	if _, err := o.Log.Seek(0, io.SeekStart); err != nil {
		return head, fmt.Errorf("read audit log: %w", err)
	}
	var chain *audit.Verifier
	log := audit.NewReader(o.Log)
	for e, err := range log.Entries() {
		if err == nil && chain == nil {
			if e.Seq > head.Seq+1 {
				return head, refuse("the audit log begins at entry %d, the backup ends at %d: what is between is missing", e.Seq, head.Seq)
			}
			// What is before the log's first entry is not in it, so that entry
			// is taken to follow what it says it follows, until entry head.Seq.
			chain = audit.VerifierAt(audit.Head{Seq: e.Seq - 1, Hash: e.Prev})
			if e.Seq == head.Seq+1 {
				chain = audit.VerifierAt(head)
			}
		}
		if err == nil {
			err = chain.Add(e)
		}
		if err != nil {
			if errors.As(err, new(*audit.BrokenError)) {
				return head, refuse("%v", err)
			}
			return head, err
		}
		switch {
		case e.Seq == head.Seq && e.Hash != head.Hash:
			return head, refuse("the audit log does not continue the backup: its entry %d is %s, the backup's is %s", e.Seq, e.Hash, head.Hash)
		case e.Seq > head.Seq:
			if err := each(e); err != nil {
				return head, err
			}
		}
	}
	if chain == nil {
		return head, refuse("the audit log is empty")
	}
	end := chain.Head()
	var signed audit.HeadStatement
	if e := log.Signed(); e != nil {
		if _, err := o.keys().Open(e, audit.HeadType, &signed); err != nil {
			return head, refusedFor("the signed head of the audit log", err)
		}
		if signed.Head != end {
			return head, refuse("the audit log ends at entry %d, %s, and its signed head is entry %d, %s: it was cut short or altered", end.Seq, end.Hash, signed.Head.Seq, signed.Head.Hash)
		}
	} else if !o.UnsignedLog && o.Head.IsZero() {
		return head, ErrUnsignedLog
	}
	if end.Seq >= head.Seq {
		return end, nil
	}
	return head, refuse("the audit log ends at entry %d, before the backup's %d", chain.Head().Seq, head.Seq)
}

package pgstore

import (
	"context"
	"crypto/sha256"
	"fmt"

	"github.com/jackc/pgx/v5"

	"github.com/sealift/sealift/cmd/sealift/internal/parts"
	"github.com/sealift/sealift/image/manifest"
)

// recutPage is how many pieces recut stores anew at a time: each may have parts
// that no other has.
const recutPage = 16

// recut cuts evidence that tables of before version 3 had in one piece into
// parts. Its rows are those of epoch 0, in which nothing was written since, and
// each is of the present epoch afterwards, so that it ends. Evidence that was
// altered stays as it is, for Evidence to tell.
func (s *Store) recut(ctx context.Context, step func(int, int64) error) error {
	type whole struct{ digest, body []byte }
	for {
		page, err := rows(ctx, s, "SELECT digest, body FROM sealift.evidence WHERE pruned IS NULL AND epoch = 0 ORDER BY epoch, digest LIMIT $1",
			[]any{recutPage}, func(r pgx.CollectableRow) (w whole, err error) {
				return w, r.Scan(&w.digest, &w.body)
			})
		if err != nil {
			return fmt.Errorf("look for evidence in one piece: %w", err)
		}
		if len(page) == 0 {
			return nil
		}
		p := &pending{ctx: ctx}
		for _, w := range page {
			row := w.body
			if sha256.Sum256(w.body) == manifest.SHA256(w.digest) {
				var cut []parts.Part
				row, cut = parts.Cut(w.body)
				p.parts = append(p.parts, cut...)
			}
			p.statements = append(p.statements, statement{fmt.Sprintf("cut evidence %x into parts", w.digest),
				`UPDATE sealift.evidence SET body = $2, epoch = (SELECT epoch FROM sealift.head) WHERE digest = $1 AND epoch = 0 AND pruned IS NULL`,
				[]any{w.digest, row}, nil})
		}
		if err := s.submit(ctx, p); err != nil {
			return fmt.Errorf("cut evidence into parts: %w", err)
		}
		if err := step(0, 0); err != nil {
			return err
		}
	}
}

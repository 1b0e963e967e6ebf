/* Where the highest similarities are, while a panel of them is in the caches; a library's matrix product
 * makes them. Panels are cut into groups of rows, one thread each, and what the groups find is put
 * together in their order: the same bits for any number of threads.
 */

#include "values.h"

/* Where `value` takes the place of `best`: it is larger, or it is NaN and best is not. */
INLINE vi above(vf value, vf best) { return ~(vi)(value <= best) & (vi)(best == best); }

enum { SPAN = 512 }; /* columns at a time */

typedef struct {
  float *s;                           /* [matrices, rows, columns]; what is left out becomes -infinity */
  const int64_t *own;                 /* [rows] numbers of the columns that are left out, or NULL */
  float *row_high, *column_high;      /* [places, rows], [places, columns]: replaced by what is above */
  int32_t *row_at, *column_at;        /* numbers of the column and row where that is, the first of equals */
  int64_t matrices, rows, columns;
  int64_t first_row, first_column;    /* their numbers */
  int64_t mirrored;                   /* the first column whose best row is wanted */
  int64_t place, side, apart;         /* of the first matrix; matrices whose places lie side by side; from the
                                         first of these to the first of the next */
  int32_t threads;
} Best;

INLINE int64_t place_of(const Best *op, int64_t matrix) {
  return op->place + matrix / op->side * op->apart + matrix % op->side;
}

/* The best of rows start .. start + n to their places, of columns to `high` and `at`. */
CALLED void best_of_group(const Best *op, int64_t matrix, int64_t start, int64_t n, float *high, int32_t *at) {
  vf best[GROUP], top[SPAN / LANES];
  vi where[GROUP], from[SPAN / LANES], lanes;
  for (int j = 0; j < LANES; j++) lanes[j] = j;
  for (int64_t r = 0; r < n; r++) best[r] = splat(-INFINITY), where[r] = (vi){0};
  for (int64_t c = 0; c < op->columns; c += SPAN) {
    int64_t size = op->columns - c < SPAN ? op->columns - c : SPAN;
    for (int64_t i = 0; i * LANES < size; i++) top[i] = splat(-INFINITY), from[i] = (vi){0};
    for (int64_t r = 0; r < n; r++) {
      float *s = op->s + (matrix * op->rows + start + r) * op->columns + c;
      if (op->own) {
        int64_t own = op->own[start + r] - op->first_column - c;
        if (own >= 0 && own < size) s[own] = -INFINITY;
      }
      vf most = best[r];
      vi place = where[r], number = (vi){0} + (int32_t)(op->first_row + start + r);
      for (int64_t i = 0; i * LANES < size; i++) {
        vf value = some(s + i * LANES, size - i * LANES);
        vi column = lanes + (int32_t)(op->first_column + c + i * LANES), more = above(value, most);
        most = pick(more, value, most);
        place = (more & column) | (~more & place);
        more = above(value, top[i]);
        top[i] = pick(more, value, top[i]);
        from[i] = (more & number) | (~more & from[i]);
      }
      best[r] = most, where[r] = place;
    }
    for (int64_t i = 0; i < size; i++) {
      high[c + i] = top[i / LANES][i % LANES];
      at[c + i] = from[i / LANES][i % LANES];
    }
  }
  for (int64_t r = 0; r < n; r++) {
    float most = best[r][0];
    int32_t place = where[r][0];
    for (int j = 1; j < LANES; j++) {
      float value = best[r][j];
      int equal = value == most || (value != value && most != most);
      int more = !(value <= most) && most == most;
      if (more || (equal && where[r][j] < place)) most = value, place = where[r][j];
    }
    int64_t row = place_of(op, matrix) * op->rows + start + r;
    float known = op->row_high[row];
    if (!(most <= known) && known == known) op->row_high[row] = most, op->row_at[row] = place;
  }
}

const int64_t EXPORT(best_bytes) = sizeof(Best);

/* Every row's and column's highest similarity, and where it is. */
int EXPORT(best)(const Best *op) {
  int64_t groups = (op->rows + GROUP - 1) / GROUP, all = op->matrices * groups;
  float *high = scratch_of(all * op->columns * sizeof(float));
  int32_t *at = scratch_of(all * op->columns * sizeof(int32_t));
  if (high && at) {
#pragma omp parallel for num_threads(op->threads) schedule(static)
    for (int64_t g = 0; g < all; g++) {
      int64_t start = g % groups * GROUP, n = op->rows - start < GROUP ? op->rows - start : GROUP;
      best_of_group(op, g / groups, start, n, high + g * op->columns, at + g * op->columns);
    }
#pragma omp parallel for num_threads(op->threads) schedule(static) collapse(2)
    for (int64_t m = 0; m < op->matrices; m++)
      for (int64_t c = op->mirrored; c < op->columns; c++) {
        const int64_t column = place_of(op, m) * op->columns + c;
        float most = op->column_high[column];
        int32_t place = op->column_at[column];
        for (int64_t g = m * groups; g < (m + 1) * groups; g++) {
          float value = high[g * op->columns + c];
          if (!(value <= most) && most == most) most = value, place = at[g * op->columns + c];
        }
        op->column_high[column] = most;
        op->column_at[column] = place;
      }
  }
  int failed = high && at ? 0 : -1;
  free(high);
  free(at);
  return failed;
}

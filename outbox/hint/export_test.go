package hint

const Gap = gap

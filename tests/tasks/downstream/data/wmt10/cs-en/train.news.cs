Vlak do Brna dnes přijel pozdě.
V noci napadl první sníh.
Ne.

Pekař otevírá obchod v šest hodin ráno a zavírá ho až večer.
